"""What a live run leaves behind: curve, step size, gradient noise, cost, time and memory."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import torch

from metaopt_hpo.training.gradients import NoiseScale
from metaopt_hpo.trials.record import CURVE_FIELDS, Curve


class Recorder:
    """Collects the curve of one run; survives checkpoints, its clocks counting over restarts."""

    def __init__(self) -> None:
        self.noise = NoiseScale()
        self.cost = 0.0
        self._rows: dict[str, list[float]] = {name: [] for name in CURVE_FIELDS}
        self._seconds_before = 0.0
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the run, earlier parts of a resumed run included."""
        return self._seconds_before + time.perf_counter() - self._start

    @property
    def last_tokens(self) -> float:
        """Tokens of the last point; 0 before the first."""
        return self._rows["tokens"][-1] if self._rows["tokens"] else 0.0

    def report(self, tokens: float, loss: float, *, step_size: float, grad_norm: float) -> None:
        """Append one point; a replayed point (after a resume) replaces the old one and what came after it."""
        while self._rows["tokens"] and self._rows["tokens"][-1] >= tokens:
            for column in self._rows.values():
                column.pop()
        row = (tokens, loss, step_size, grad_norm, self.noise.value(), self.cost, self.seconds)
        for name, value in zip(CURVE_FIELDS, row, strict=True):
            self._rows[name].append(float(value))

    def curve(self) -> Curve | None:
        """The curve so far; None before the first report."""
        if not self._rows["tokens"]:
            return None
        return Curve(**{name: tuple(column) for name, column in self._rows.items()})

    def plateau(self) -> tuple[float, float]:
        """Median step size and standard deviation of its logarithm between a quarter and 70 % of the tokens,
        after any warm-up and before any cooldown of the usual lengths."""
        curve = self.curve()
        if curve is None:
            return math.nan, math.nan
        end = curve.tokens[-1]
        logs = sorted(
            math.log(s)
            for t, s in zip(curve.tokens, curve.step_size, strict=True)
            if 0.25 * end <= t <= 0.7 * end and s > 0 and math.isfinite(s)
        )
        if not logs:
            return math.nan, math.nan
        middle = len(logs) // 2
        median = logs[middle] if len(logs) % 2 else 0.5 * (logs[middle - 1] + logs[middle])
        mean = sum(logs) / len(logs)
        return math.exp(median), math.sqrt(sum((x - mean) ** 2 for x in logs) / len(logs))

    def fields(self) -> dict[str, Any]:
        """What a `TrialRecord` takes from here."""
        return {
            "cost": self.cost,
            "seconds": self.seconds,
            "grad_noise": self.noise.value(),
            "curve": self.curve(),
        }

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {
            "noise": self.noise.state_dict(),
            "cost": self.cost,
            "rows": self._rows,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`; the clock goes on from where it stood."""
        self.noise.load_state_dict(state["noise"])
        self.cost = float(state["cost"])
        self._rows = {name: list(state["rows"][name]) for name in CURVE_FIELDS}
        self._seconds_before = float(state["seconds"])
        self._start = time.perf_counter()


def peak_memory(device: torch.device) -> float:
    """Peak memory in bytes: of the allocator on CUDA, of the whole process so far elsewhere; NaN on Windows."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return math.nan
    import resource  # Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
