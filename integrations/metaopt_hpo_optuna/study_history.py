"""What has been read of a study: its ended trials as the policy's history, and the runs that proposals count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo_optuna.fields import REPEATS, Fields, strategy_of, tuning_of
from metaopt_hpo_optuna.study_table import trial_record

if TYPE_CHECKING:
    from metaopt_hpo.scaling.law import Law
    from metaopt_hpo.scaling.policy import Fitted, History, Refits
    from metaopt_hpo.scaling.policy.points import FittedBowl

Cell = tuple[float, float]
"""Size and planned tokens."""

Row = tuple[float, float, float, float, float]
"""Size, planned tokens, batch, lr, final loss or NaN."""


def _history() -> History:
    from metaopt_hpo.scaling.policy import History

    return History()


@dataclass
class StudyHistory:
    """What has been read of one study."""

    seen: set[int] = field(default_factory=set)
    """Completed and pruned trials that have been read."""
    history: History = field(default_factory=_history)
    pruned: dict[int, tuple[Row, str]] = field(default_factory=dict)
    """Pruned trials whose lr was set from outside: where they were, and their strategies."""
    used: list[Cell] = field(default_factory=list)
    """Size, and tokens seen, of each ended trial."""
    left_out: dict[int, str] = field(default_factory=dict)
    """Trials that cannot be read, and why."""
    positive: bool = False
    """Some finished trial has a loss above 0, which a law can be of."""
    sources: list[StudyHistory] = field(default_factory=list)
    refits: Refits | None = None
    fitted: Fitted | None = None
    """The law in force when it was last asked for."""
    bowls: dict[str, tuple[tuple[int, int, int], FittedBowl | None]] = field(default_factory=dict)
    """By strategy, the bowl behind proposals, the numbers of trials it was fitted to, and how many came late."""

    @property
    def law(self) -> Law | None:
        """The law in force."""
        return None if self.fitted is None else self.fitted.law

    @property
    def refusal(self) -> str:
        """Why there is no law."""
        return "" if self.fitted is None else self.fitted.refusal

    @property
    def finished(self) -> int:
        """Number of completed trials with a size."""
        return len(self.history.finished)

    def take(self, ended: Sequence[FrozenTrial], names: Fields, study: Study) -> None:
        """Read those completed and pruned trials that are new; nearly always the last ones, so these come first.

        A trial that cannot be read is left out, whoever reads it and however often.
        """
        missing = len(ended) - len(self.seen)
        new: list[FrozenTrial] = []
        for trial in reversed(ended):
            if len(new) >= missing:
                break
            if trial.number not in self.seen:
                new.append(trial)
        for trial in sorted(new, key=lambda t: (t.datetime_complete or datetime.min, t.number)):
            self.seen.add(trial.number)
            try:
                self._take(trial, names, study)
            except Exception as error:  # anything may stand in another program's attributes
                self.left_out[trial.number] = str(error) or type(error).__name__

    def _take(self, trial: FrozenTrial, names: Fields, study: Study) -> None:
        if REPEATS in trial.user_attrs:
            return  # nothing was trained
        when = (trial.datetime_complete, trial.number)
        record = trial_record(trial, names, study.study_name, study.direction)
        if record is not None:
            cell = cell_of(trial, names)
            if cell is not None and record.state == "complete":  # planned tokens as they are looked up
                record = _planned(record, cell[1])
            self.history.add(when, record)
            whole = record.state == "complete"
            self.used.append((record.size, record.planned_tokens if whole else record.tokens))
            self.positive |= record.state == "complete" and record.loss > 0
        if trial.state == TrialState.PRUNED and tuning_of(trial) != "self":
            row = unfinished_row(trial, names)
            if row is not None:
                self.pruned[trial.number] = (row, strategy_of(trial))

    def records(self, count: int | None = None) -> list[TrialRecord]:
        """The first `count` finished trials of the study (all by default), and all of its sources'."""
        chosen = [r for _, r in self.history.finished[:count]]
        for other in self.sources:
            chosen += [r for _, r in other.history.finished]
        return chosen


def _planned(record: TrialRecord, tokens: float) -> TrialRecord:
    return replace(record, target_tokens=tokens)


def cell_of(trial: FrozenTrial, names: Fields) -> Cell | None:
    """Size and planned tokens of a trial, None where it has not both."""
    size, tokens = names.get(trial, "size"), names.get(trial, "tokens")
    return None if size is None or tokens is None else (size, tokens)


def unfinished_row(trial: FrozenTrial, names: Fields) -> Row | None:
    """A trial without a result as a run for proposals; None where it has no size or no lr yet."""
    cell, lr = cell_of(trial, names), names.get(trial, "lr")
    if cell is None or lr is None:
        return None
    return (*cell, names.get(trial, "batch") or 1.0, lr, float("nan"))


def row_of(record: TrialRecord) -> Row:
    """A finished trial as a run for proposals."""
    return record.size, record.planned_tokens, record.batch, record.lr, record.loss
