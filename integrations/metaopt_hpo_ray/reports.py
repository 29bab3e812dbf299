"""From Tune's trials and results to the book: what a config says of a trial, and what a result adds to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaopt_hpo.strategies.registry import tuning_of
from metaopt_hpo.trials.record import TrialState
from metaopt_hpo_ray.columns import COST, PROCESS, REASON, STATE, WORK, Columns
from metaopt_hpo_ray.entry import DONE, Entry
from metaopt_hpo_ray.state import TrialBook

EXTRA = (
    "size",
    "batch",
    "lr",
    "strategy",
    "tuning",
    "seed",
    "workload",
    "initial_loss",
    "seconds",
    "memory",
    "grad_noise",
    "found_lr",
    "found_lr_spread",
)
"""Results that become fields of the trial record."""

_EXTRA = frozenset(EXTRA)

REASON_LENGTH = 300


def describe(config: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """What a trial's config says of it, as the fields of a book's entry."""
    found = {name: columns.get(config, name) for name in ("size", "tokens", "batch", "lr")}
    facts: dict[str, Any] = {name: value for name, value in found.items() if value is not None}
    strategy, seed = config.get("strategy"), config.get("seed")
    if isinstance(strategy, str):
        facts["strategy"] = strategy
        facts["tuning"] = tuning_of(strategy)
    if isinstance(seed, int) and not isinstance(seed, bool):
        facts["seed"] = seed
    facts["params"] = columns.others(config)
    return facts


def report(book: TrialBook, key: str, tokens: float, loss: float, result: Mapping[str, Any]) -> None:
    """Enter one of Tune's results in the book; what `TrialRun` adds to it is used where it is there."""
    if result.get(STATE) == "diverged":
        loss = math.nan  # what was reported is a finite stand-in for searchers
    get = result.get
    work = get(WORK)
    book.report(
        key,
        tokens,
        loss,
        process=str(get(PROCESS) or f"{get('hostname', '')}-{get('pid', '')}"),
        work=float(work) if work is not None and is_finite(work) else None,
        cost=_number(get(COST)),
        step_size=_number(get("step_size")),
        grad_norm=_number(get("grad_norm")),
        extra={k: result[k] for k in _EXTRA & result.keys()},
    )


def outcome(entry: Entry, result: Mapping[str, Any]) -> tuple[TrialState, str]:
    """How a trial that Tune calls complete has really ended, and why."""
    tokens, loss = entry.last
    if result.get(STATE) == "diverged":
        return "diverged", str(result.get(REASON, ""))
    if entry.points and not math.isfinite(loss):
        return "diverged", f"the loss is {loss} after {tokens:g} tokens"
    if result.get(STATE) == "complete" or (entry.points and not entry.tokens > 0):
        return "complete", ""
    if entry.points and tokens >= DONE * entry.tokens:
        return "complete", ""
    return "pruned", "it ended, or was ended, before its planned tokens"


def why_failed(trial: Any) -> str:
    """The last line of the error that Tune recorded for a trial."""
    try:
        text = (
            Path(trial.error_file).read_text(encoding="utf-8", errors="replace") if trial.error_file else ""
        )
    except (OSError, RuntimeError, AttributeError):
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:REASON_LENGTH] if lines else "the trial's process failed"


def is_finite(value: Any) -> bool:
    """True for a finite number."""
    if value is None:
        return False
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any) -> float:
    return math.nan if value is None or not isinstance(value, (int, float)) else float(value)
