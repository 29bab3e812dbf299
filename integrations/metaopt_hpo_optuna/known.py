"""What has been read of a study: its finished trials in the order they finished, and how many of them count.

A law is fitted to the first K finished trials, K growing by a tenth at a time (`step`), and the one before decides
(`before`): so decisions are a function of the finished trials alone, and the next law can be fitted meanwhile.
"""

from __future__ import annotations

import math
from array import array
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo_optuna.fields import Fields, strategy_of, tuning_of
from metaopt_hpo_optuna.study_table import trial_record

if TYPE_CHECKING:
    from metaopt_hpo.scaling import Law
    from metaopt_hpo.scaling.policy.points import Bowl

GROWTH = 1.1
"""Evidence grows by this factor before the law is fitted again: the number of fits is logarithmic in trials."""

EXACT = 20
"""Up to so many trials every new one counts."""

MAD_TO_SD = 1.4826
"""Median absolute deviation to standard deviation, for normal errors."""

Cell = tuple[float, float]
"""Size and planned tokens."""

Row = tuple[float, float, float, float, float]
"""Size, planned tokens, batch, lr, final loss or NaN."""


@dataclass
class Known:
    """What has been read of one study."""

    seen: set[int] = field(default_factory=set)
    """Completed and pruned trials that have been read."""
    finished: list[tuple[Any, int, TrialRecord]] = field(default_factory=list)
    """Completed trials with a size, by the time they finished."""
    ended: dict[Cell, list[tuple[int, bool]]] = field(default_factory=dict)
    """(size, planned tokens) → numbers of completed and pruned trials, in order, and whether they completed."""
    pruned: list[tuple[int, Row, str]] = field(default_factory=list)
    """Numbers of pruned trials whose lr was set from outside, where they were, and their strategies."""
    best: dict[Cell, float] = field(default_factory=dict)
    """Lowest final loss of each (size, tokens)."""
    positive: bool = False
    """Some finished trial has a loss above 0, which a law can be of."""
    still_to_fall: dict[Cell, array[float]] = field(default_factory=dict)
    """(planned tokens, tokens so far) → ln(final loss / loss so far) of every finished trial."""
    law: Law | None = None
    refusal: str = ""
    fitted: tuple[int, ...] = ()
    ahead: int = -1
    """Number of trials of the law that is being prepared."""
    sources: list[Known] = field(default_factory=list)
    expected: dict[Cell, tuple[int, float, float]] = field(default_factory=dict)
    bowls: dict[str, tuple[tuple[int, int], Bowl | None]] = field(default_factory=dict)
    """By strategy, the bowl behind proposals and the numbers of trials it was fitted to."""

    def fall(self, tokens: float, seen: float) -> tuple[int, float, float]:
        """How much finished trials planned for `tokens` still fell from `seen` tokens on.

        Returns:
            Their number, and the median and robust standard deviation of ln(final loss / loss at `seen`).
        """
        lists = [k.still_to_fall.get((tokens, seen), ()) for k in (self, *self.sources)]
        count = sum(map(len, lists))
        found = self.expected.get((tokens, seen))
        if found is None or found[0] != count:
            # a copy: an array that numpy looks into cannot grow
            falls = np.concatenate([np.array(x, dtype=float) for x in lists])
            middle = float(np.median(falls)) if count else math.nan
            spread = MAD_TO_SD * float(np.median(np.abs(falls - middle))) if count else math.nan
            found = self.expected[tokens, seen] = (count, middle, spread)
        return found

    def take(self, ended: Sequence[FrozenTrial], names: Fields, study: Study) -> None:
        """Read those completed and pruned trials that are new; nearly always the last ones, so these come first."""
        missing = len(ended) - len(self.seen)
        for trial in reversed(ended):
            if missing <= 0:
                break
            if trial.number not in self.seen:
                missing -= 1
                self.seen.add(trial.number)
                self._take(trial, names, study)

    def _take(self, trial: FrozenTrial, names: Fields, study: Study) -> None:
        complete = trial.state == TrialState.COMPLETE
        cell = place(trial, names)
        if cell is not None:
            insort(self.ended.setdefault(cell, []), (trial.number, complete))
        if not complete:
            row = unfinished_row(trial, names)
            if row is not None and tuning_of(trial) != "self":
                insort(self.pruned, (trial.number, row, strategy_of(trial)))
            return
        record = trial_record(trial, names, study.study_name, study.direction)
        if record is None or record.state != "complete":
            return
        insort(self.finished, (trial.datetime_complete, trial.number, record), key=lambda item: item[:2])
        cell = (record.size, record.target_tokens)
        self.positive |= record.loss > 0
        self.best[cell] = min(record.loss, self.best.get(cell, record.loss))
        if record.curve is not None and record.loss > 0:
            for t, loss in zip(record.curve.tokens, record.curve.loss, strict=True):
                if 0 < loss < math.inf:
                    falls = self.still_to_fall.setdefault((record.target_tokens, t), array("d"))
                    falls.append(math.log(record.loss / loss))

    def first(self, count: int, *, steps: bool = False) -> list[TrialRecord]:
        """The first `count` finished trials of the study, and all of its sources' or, by `steps`, as many as count."""
        chosen = [r for _, _, r in self.finished[:count]]
        for other in self.sources:
            last = step(len(other.finished)) if steps else len(other.finished)
            chosen += [r for _, _, r in other.finished[:last]]
        return chosen


def place(trial: FrozenTrial, names: Fields) -> Cell | None:
    """Size and planned tokens of a trial, None where it has not both."""
    size, tokens = names.get(trial, "size"), names.get(trial, "tokens")
    return None if size is None or tokens is None else (size, tokens)


def unfinished_row(trial: FrozenTrial, names: Fields) -> Row | None:
    """A trial without a result as a run for proposals; None where it has no size or no lr yet."""
    cell, lr = place(trial, names), names.get(trial, "lr")
    if cell is None or lr is None:
        return None
    return (*cell, names.get(trial, "batch") or 1.0, lr, math.nan)


def row_of(record: TrialRecord) -> Row:
    """A finished trial as a run for proposals."""
    return record.size, record.planned_tokens, record.batch, record.lr, record.loss


def step(count: int) -> int:
    """The number of trials a law is fitted to when `count` have finished: the same in every worker."""
    if count <= EXACT:
        return count
    k = EXACT
    while (nxt := int(k * GROWTH) + 1) <= count:
        k = nxt
    return k


def before(count: int) -> int:
    """The step before `step(count)`: whose law decides when `count` have finished."""
    return step(step(count) - 1) if count else 0
