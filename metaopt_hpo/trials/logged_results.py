"""Results that a framework's trials report, one mapping a report, and what each adds to a logbook.

For frameworks that pass results on as mappings of names to numbers: under which names a run of ours reports, how those
of any other run are read, and how a trial has ended by its last one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.logged_trial import REPORTED, LoggedTrial
from metaopt_hpo.trials.quantities import PROGRESS_TOKENS, QUANTITIES, at, number
from metaopt_hpo.trials.record import REACHED_BY_REPORT, TrialRecord, TrialState

logger = logging.getLogger(__name__)

METRIC = "loss"
"""Result: held-out loss, nats per token; the default metric."""

PROGRESS = "tokens_seen"
"""Result: training tokens seen."""

COST = "flops"
"""Result: training FLOPs of the run up to this point of its curve; goes back with a retry."""

WORK = "flops_here"
"""Result: training FLOPs of this process alone. The sum over processes is what a trial has cost."""

PROCESS = "process"
"""Result: name of the process that ran this part of the trial."""

STATE = "run_state"
REASON = "run_reason"
"""Results: how the run stands, and why, as in a trial record."""

NOTE = "run_note"
"""Result: what happened to the run on its way, for its row of the table."""

MEASURED = ("found_lr", "found_lr_spread", "initial_loss", "grad_noise", "unique_tokens")
"""Results of any run that become fields of the trial record: what else it reports under such names (its scheduler's
current `lr`, a `size` of its own) says nothing of the trial."""

OTHER_PROGRESS = ("tokens", *PROGRESS_TOKENS, *QUANTITIES["tokens"].strong)
"""Results that are read as tokens seen where the one that was named is missing."""

CUT = "the experiment ended (time_budget_s, a stopper, fail_fast or an interrupt) before it did"
NOT_LAUNCHED = "not launched: the experiment ended first"
ENDED = "it ended, or was ended, before its planned tokens"

_EXTRA = frozenset(REPORTED) - {"target_tokens"}


def result_of(record: TrialRecord) -> dict[str, Any]:
    """What every report of a run of ours says of it, beside loss, tokens and cost."""
    said = {STATE: record.state, REASON: record.reason}
    return said | {name: getattr(record, name) for name in REPORTED}


class Results:
    """Reads loss and tokens from results, nested or flat, with NumPy's and torch's scalars, and enters them in a book.

    Args:
        metric, progress: names of the two, nested ones with slashes. Where a run reports no `progress` of the
            default name, a result with another usual name for tokens is taken, and that is said once.
        maximize: True where the metric is maximised; the book holds it negated.
    """

    def __init__(self, metric: str = METRIC, progress: str = PROGRESS, *, maximize: bool = False) -> None:
        self.metric = metric
        self.progress = progress
        self.maximize = maximize
        self._substitute = ""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"maximize": False, **state})  # earlier versions had no such attribute

    def loss(self, result: Mapping[str, Any]) -> float | None:
        """The loss; None where there is none, or no number."""
        value = result.get(self.metric)
        found = number(at(result, self.metric) if value is None else value)
        return -found if found is not None and self.maximize else found

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

    def enter(self, book: Logbook, key: str, result: Mapping[str, Any]) -> None:
        """Enter a result in the book, where it holds a loss and counts tokens."""
        tokens, loss = self.tokens(result), self.loss(result)
        if tokens is not None and loss is not None:
            report(book, key, tokens, loss, result)

    def close(
        self,
        book: Logbook,
        key: str,
        result: Mapping[str, Any],
        *,
        as_meant: bool = False,
        ended_by: str = "",
    ) -> None:
        """Close a trial that its framework calls ended, by its last result.

        Args:
            as_meant: see `outcome`.
            ended_by: what may have ended it before its planned tokens, as the reason where it says nothing itself; ""
                where it can only have ended by itself.
        """
        entry = book.entries[key]
        if (
            not (entry.points or entry.closed)
            and (loss := self.loss(result)) is not None
            and entry.tokens > 0
        ):
            report(book, key, entry.tokens, loss, result)  # it counts no tokens, and has ended
        state, reason = outcome(entry, result, as_meant=as_meant)
        if state == "stopped" and ended_by and result.get(STATE, "running") == "running":
            state, reason = "pruned", ended_by
        book.close(key, state, reason)


def report(book: Logbook, key: str, tokens: float, loss: float, result: Mapping[str, Any]) -> None:
    """Enter one result in the book; what a run of ours adds to it is used where it is there."""
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
        extra = {k: _plain(result[k]) for k in _EXTRA & result.keys()}
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


def outcome(
    entry: LoggedTrial, result: Mapping[str, Any], *, as_meant: bool = False
) -> tuple[TrialState, str]:
    """How a trial that its framework calls complete, and that no decision has stopped, has really ended, and why.

    Args:
        entry: with the trial's last report in it.
        result: that report.
        as_meant: True where its last report met a stopping criterion of the experiment or said `done`: what it reached
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
    early = f"it ended by itself after {tokens:g} of {entry.tokens:g} planned tokens"
    if said == "stopped":
        return "stopped", str(result.get(REASON, "")) or early
    if said == "complete" or as_meant or not entry.tokens > 0 or tokens >= REACHED_BY_REPORT * entry.tokens:
        return "complete", str(result.get(REASON, "")) if said == "complete" else ""
    return "stopped", early


def cut_off(book: Logbook) -> None:
    """Close the trials that are open when their experiment ends, of which frameworks tell nobody."""
    for key, entry in book.entries.items():
        if entry.closed:
            continue
        if not entry.launched:
            book.close(key, "pruned", NOT_LAUNCHED, cut=True)
            book.decided(key, "stop", NOT_LAUNCHED)
        elif entry.points and not math.isfinite(entry.last[1]):
            book.close(key, "diverged", f"the loss is {entry.last[1]}")
        elif entry.points and outcome(entry, {})[0] == "complete":
            book.close(key, "complete")
        else:
            book.close(key, "stopped", CUT, cut=True)


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: scalars of NumPy and torch as plain ones."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    found = number(value)
    return str(value) if found is None else found


def _or_nan(value: Any) -> float:
    found = number(value)
    return math.nan if found is None else found
