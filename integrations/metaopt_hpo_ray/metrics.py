"""What a search does, as metrics of the cluster: `ray.util.metrics`, for Prometheus and the dashboard."""

from __future__ import annotations

import logging
import time
from typing import Any

import ray

from metaopt_hpo.trials.logbook import Logbook

logger = logging.getLogger(__name__)

EVERY = 5.0
"""Seconds between two updates; Ray exports every ten."""

GAUGES = {
    "metaopt_trials_held": "Trials that wait to be launched",
    "metaopt_trials_launched": "Trials that were launched",
    "metaopt_trials_stopped": "Trials that were stopped before their planned tokens, or not launched",
    "metaopt_flops_spent": "Training FLOPs spent",
    "metaopt_flops_saved": "Training FLOPs (6 * size * tokens) of what was stopped or not launched",
}


def count(book: Logbook) -> dict[str, float]:
    """The metrics' values."""
    return dict(zip(GAUGES, book.totals().values(), strict=True))


class Metrics:
    """Sets the metrics, at most every few seconds; without a running cluster it does nothing."""

    def __init__(self) -> None:
        self._gauges: dict[str, Any] = {}
        self._last = -EVERY

    def update(self, book: Logbook, *, now: bool = False) -> None:
        """Bring the metrics up to date."""
        at = time.monotonic()
        if not ray.is_initialized() or (at - self._last < EVERY and not now):
            return
        self._last = at
        if not self._gauges:
            from ray.util.metrics import Gauge

            self._gauges = {name: Gauge(name, description=text) for name, text in GAUGES.items()}
        for name, value in count(book).items():
            self._gauges[name].set(value)

    def __getstate__(self) -> dict[str, Any]:
        return {"_gauges": {}, "_last": -EVERY}
