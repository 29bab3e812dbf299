"""What has been read of a study: its ended trials, each once, as the policy's `Past`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from metaopt_hpo.scaling.policy.history import Cell
from metaopt_hpo.scaling.policy.past import Past, Row
from metaopt_hpo_optuna.fields import REPEATS, Fields, strategy_of, tuning_of
from metaopt_hpo_optuna.study_table import trial_record


@dataclass
class StudyHistory(Past):
    """What has been read of one study."""

    seen: set[int] = field(default_factory=set)
    """Ended trials that have been read."""
    left_out: dict[int, str] = field(default_factory=dict)
    """Trials that cannot be read, and why."""

    def take(self, ended: Sequence[FrozenTrial], names: Fields, study: Study) -> None:
        """Read those ended trials that are new; nearly always the last ones, so these come first.

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
                if trial.state != TrialState.FAIL:
                    self.left_out[trial.number] = str(error) or type(error).__name__

    def _take(self, trial: FrozenTrial, names: Fields, study: Study) -> None:
        if REPEATS in trial.user_attrs:
            return  # nothing was trained
        record = trial_record(trial, names, study.study_name, study.direction)
        whole = record is not None and record.state == "complete"
        if record is not None:
            cell = cell_of(trial, names)
            if cell is not None and whole:  # planned tokens as they are looked up
                record = replace(record, target_tokens=cell[1])
            self.add((trial.datetime_complete, trial.number), record)
            if trial.state == TrialState.COMPLETE and record.state == "stopped":
                self.early[trial.number] = record.tokens / record.planned_tokens
        if not whole and tuning_of(trial) != "self":
            row = unfinished_row(trial, names)
            if row is not None:
                kept = self.failed if trial.state == TrialState.FAIL else self.unfinished
                kept[trial.number] = row, strategy_of(trial)


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
