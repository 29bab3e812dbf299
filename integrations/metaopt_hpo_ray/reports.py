"""From Tune's trials and results to the book: what a config says of a trial, and what a result adds to it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial

from metaopt_hpo.strategies.registry import get, tuning_of
from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.logged_trial import DONE, REPORTED, LoggedTrial
from metaopt_hpo.trials.quantities import PROGRESS_TOKENS, QUANTITIES, at, number
from metaopt_hpo.trials.record import TrialState
from metaopt_hpo_ray.columns import COST, NOTE, PROCESS, PROGRESS, REASON, STATE, WORK, Columns

logger = logging.getLogger(__name__)

_EXTRA = frozenset(REPORTED) - {"target_tokens"}
"""Results of a `TrialRun` that become fields of the trial record."""

MEASURED = ("found_lr", "found_lr_spread", "initial_loss", "grad_noise", "unique_tokens")
"""Results of any trainable that do: what else it reports under such names (its scheduler's current `lr`, a `size` of
its own) says nothing of the trial."""

OTHER_PROGRESS = ("tokens", *PROGRESS_TOKENS, *QUANTITIES["tokens"].strong)
"""Results that are read as tokens seen where the one that was named is missing."""

REASON_LENGTH = 300

CUT = "the experiment ended (time_budget_s, a stopper, fail_fast or an interrupt) before it did"
NOT_LAUNCHED = "not launched: the experiment ended first"


class Results:
    """Reads loss and tokens from Tune's results, nested or flat, with NumPy's and torch's scalars.

    Args:
        metric, progress: names of the two, nested ones with slashes. Where a trainable reports no `progress` of the
            default name, a result with another usual name for tokens is taken, and that is said once.
    """

    def __init__(self, metric: str, progress: str) -> None:
        self.metric = metric
        self.progress = progress
        self._substitute = ""

    def loss(self, result: Mapping[str, Any]) -> float | None:
        """The loss; None where there is none, or no number."""
        value = result.get(self.metric)
        return number(at(result, self.metric) if value is None else value)

    def tokens(self, result: Mapping[str, Any]) -> float | None:
        """Tokens seen; None where there are none, or no finite number."""
        value = result.get(self.progress)
        if value is None:
            value = at(result, self._substitute or self.progress)
            if value is None and self.progress == PROGRESS and not self._substitute:
                value = self._other(result)
        tokens = number(value)
        return tokens if tokens is not None and math.isfinite(tokens) else None

    def _other(self, result: Mapping[str, Any]) -> Any:
        for name in OTHER_PROGRESS:
            if number(result.get(name)) is not None:
                self._substitute = name
                logger.warning(
                    "trials report no %r; their %r is read as tokens seen (progress=… names another)",
                    self.progress,
                    name,
                )
                return result[name]
        return None


def describe(config: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """What a trial's config says of it, as the fields of a book's entry."""
    found = {name: columns.get(config, name) for name in ("size", "tokens", "batch", "lr")}
    facts: dict[str, Any] = {name: value for name, value in found.items() if value is not None}
    strategy, seed = config.get("strategy"), config.get("seed")
    if isinstance(strategy, str):
        facts["strategy"] = strategy
        facts["tuning"] = tuning_of(strategy)
        if facts["tuning"] == "self" and "lr" not in facts:
            facts["lr"] = _start(strategy)
    if isinstance(seed, int) and not isinstance(seed, bool):
        facts["seed"] = seed
    facts["params"] = columns.others(config)
    return facts


def know(book: Logbook, trial: Trial, columns: Columns) -> LoggedTrial:
    """Enter what a trial's config says of it now: a searcher, or another scheduler, may have changed it."""
    book.add(trial.trial_id, **describe(trial.config, columns))
    lr = columns.get(trial.config, "lr")
    if lr is not None:
        book.set_lr(trial.trial_id, lr)
    return book.entries[trial.trial_id]


@lru_cache(maxsize=64)
def _start(strategy: str) -> float:
    """The step size at which a strategy starts where nobody gives one."""
    return float(get(strategy)().lr)


def report(book: Logbook, key: str, tokens: float, loss: float, result: Mapping[str, Any]) -> None:
    """Enter one of Tune's results in the book; what `TrialRun` adds to it is used where it is there."""
    get = result.get
    if get(STATE) == "diverged":
        loss = math.nan  # what was reported is a finite stand-in for searchers
    process = get(PROCESS)
    if process is None:
        work, cost = None, math.nan
        extra = {k: value for k in MEASURED if (value := number(get(k))) is not None}
        entry = book.entries.get(key)
        if entry is not None and entry.missing:
            extra |= {k: v for k in entry.missing if (v := number(get(k))) is not None and v > 0}
    else:
        work, cost = number(get(WORK)), _or_nan(get(COST))
        extra = {k: plain(result[k]) for k in _EXTRA & result.keys()}
    if (note := get(NOTE)) and isinstance(note, str):
        book.note(key, note)
    book.report(
        key,
        tokens,
        loss,
        process=str(process or f"{get('hostname', '')}-{get('pid', '')}"),
        work=work if work is not None and math.isfinite(work) else None,
        cost=cost,
        step_size=_or_nan(get("step_size")),
        grad_norm=_or_nan(get("grad_norm")),
        extra=extra,
    )


ENDED_BY_SCHEDULER = "its scheduler, or a stopper, ended it before its planned tokens"
"""Why a trial was stopped by something that gives no reason."""


def outcome(
    entry: LoggedTrial, result: Mapping[str, Any], *, by_tune: bool = False
) -> tuple[TrialState, str]:
    """How a trial that Tune calls complete, and that no decision has stopped, has really ended, and why.

    Args:
        entry: with the trial's last report in it.
        result: that report.
        by_tune: True where its last report met a stopping criterion of the experiment or said `done`: what it reached
            is then what had been planned.
    """
    tokens, loss = entry.last
    said = result.get(STATE)
    if said == "diverged":
        return "diverged", str(result.get(REASON, ""))
    if not entry.points:
        if entry.launched:
            return "failed", "it ended without having reported its loss"
        return "pruned", "it was ended before it ran"
    if not math.isfinite(loss):
        return "diverged", f"the loss is {loss} after {tokens:g} tokens"
    if said == "stopped":
        return "stopped", str(result.get(REASON, "")) or ended_early(entry)
    if said == "complete" or by_tune or not entry.tokens > 0 or tokens >= DONE * entry.tokens:
        return "complete", str(result.get(REASON, "")) if said == "complete" else ""
    return "stopped", ended_early(entry)


def cut_off(book: Logbook, key: str, entry: LoggedTrial) -> None:
    """Close a trial that is open when its experiment ends, of which Tune tells nobody."""
    if not entry.launched:
        book.close(key, "pruned", NOT_LAUNCHED, cut=True)
        book.decided(key, "stop", NOT_LAUNCHED)
    elif entry.points and not math.isfinite(entry.last[1]):
        book.close(key, "diverged", f"the loss is {entry.last[1]}")
    elif entry.points and outcome(entry, {})[0] == "complete":
        book.close(key, "complete")
    else:
        book.close(key, "stopped", CUT, cut=True)


def ended_early(entry: LoggedTrial) -> str:
    """That a trial has seen fewer tokens than planned."""
    return f"it ended by itself after {entry.last[0]:g} of {entry.tokens:g} planned tokens"


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


def plain(value: Any) -> Any:
    """A value as JSON can hold it: scalars of NumPy and torch as plain ones."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    found = number(value)
    return str(value) if found is None else found


def _or_nan(value: Any) -> float:
    found = number(value)
    return math.nan if found is None else found
