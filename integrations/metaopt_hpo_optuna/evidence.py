"""What a study knows so far: its ended trials, read once each, and the law in force (`scaling.policy.refits`)."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from metaopt_hpo.scaling.base.sources import BaseLike, lent
from metaopt_hpo.scaling.law import Law
from metaopt_hpo.scaling.policy import Refits, Run
from metaopt_hpo.scaling.policy.history import Cell
from metaopt_hpo.scaling.policy.past import Placed, Row
from metaopt_hpo.scaling.policy.points import FittedBowl, Runs
from metaopt_hpo_optuna import _compat
from metaopt_hpo_optuna.fields import Fields, StudyWarning, reports_of, strategy_of, tuning_of
from metaopt_hpo_optuna.study_history import StudyHistory, cell_of, unfinished_row
from metaopt_hpo_optuna.study_table import check_single_objective

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

REMEMBERED = 1024
"""Trials whose place is kept, to notice one that changes."""


class Evidence:
    """Laws of studies, from their own trials and those of `source_studies`.

    Args:
        names: where trials keep size, tokens, batch and lr.
        source_studies: studies whose trials count as well, read again when they have grown.
        allow_weak: fit from two sizes too.
        need: completed trials with a size below which no law is fitted; by default the policy's own.
        base, prior: what proposals and laws borrow strength from (`metaopt_hpo.scaling.base`).
    """

    def __init__(
        self,
        names: Fields,
        source_studies: Sequence[Study],
        *,
        allow_weak: bool = False,
        need: int | None = None,
        base: BaseLike | Sequence[BaseLike] | None = None,
        prior: Law | None = None,
    ) -> None:
        if isinstance(source_studies, Study):
            raise ValueError("source_studies must be a list of studies, got one study; put it in brackets")
        for source in source_studies:
            if not isinstance(source, Study):
                raise ValueError(
                    f"source_studies must hold optuna studies, got {type(source).__name__}; load one with "
                    "optuna.load_study, or make one of a table with metaopt_hpo_optuna.add_records"
                )
            check_single_objective(source, "a law")
        self.names = names
        self.sources = tuple(source_studies)
        self._allow_weak = allow_weak
        self._need = need
        self.base = lent(base, prior)
        self._forget()

    def _forget(self) -> None:
        self._past: weakref.WeakKeyDictionary[BaseStorage, dict[int, StudyHistory]] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.RLock()
        self._told: set[str] = set()
        self._places: OrderedDict[tuple[str, int, datetime | None], Cell] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_past", "_lock", "_told", "_places")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def cell_of(self, trial: FrozenTrial) -> Cell | None:
        """Size and planned tokens of a trial, None where it has not both."""
        return cell_of(trial, self.names)

    def size_of(self, trial: FrozenTrial) -> float | None:
        """Size of another trial, None where it has none that is a number."""
        try:
            return self.names.get(trial, "size")
        except ValueError:
            return None

    def place_of(self, study: Study, trial: FrozenTrial) -> Cell | None:
        """`place` of a trial of this study, after a check that it is what it was when last asked.

        Raises:
            ValueError: the trial has changed its size or its planned tokens.
        """
        cell = self.cell_of(trial)
        if cell is None:
            return None
        key = (study.study_name, trial.number, trial.datetime_start)
        before = self._places.setdefault(key, cell)
        if before != cell:
            raise ValueError(
                f"trial {trial.number} had (size, tokens) = {before} and now has {cell}; one trial is one run: "
                "set them once, and start a new trial for another size"
            )
        while len(self._places) > REMEMBERED:
            self._places.popitem(last=False)
        return cell

    def read(self, study: Study, *, at_ask: bool = False) -> StudyHistory:
        """The study's finished trials and the law they bear, up to date.

        Args:
            study: the study.
            at_ask: as of the present trial's beginning, which a sampler has read already; less to read.

        Raises:
            ValueError: a multi-objective study, or a source whose direction contradicts the study's.
        """
        with self._lock:
            past = self._read(study, at_ask)
            past.refit(past.refits or Refits(need=self._need, allow_weak=self._allow_weak, base=self.base))
            return past

    def run_of(self, study: Study, trial: FrozenTrial) -> Run | None:
        """The trial as the policy sees it, with its whole curve; None where a quantity is missing.

        Raises:
            ValueError: a quantity is no positive number, or has changed since it was last asked.
        """
        cell = self.place_of(study, trial)
        batch, lr = self.names.get(trial, "batch"), self.names.get(trial, "lr")
        if cell is None or batch is None or lr is None:
            return None
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        reports = reports_of(trial, self.names)
        return Run(
            size=cell[0],
            tokens=cell[1],
            batch=batch,
            lr=lr,
            strategy=strategy_of(trial),
            self_tuning=tuning_of(trial) == "self",
            curve=tuple((t, sign * value) for t, value in reports.points),
        )

    def runs(self, study: Study, trial: FrozenTrial) -> tuple[Runs, FittedBowl | None]:
        """All runs that began before `trial`, for proposals, and the bowl they show; see `Past.runs`."""
        with self._lock:
            past = self._read(study, True)
            return past.runs(strategy_of(trial), self._running(study, trial), self.base)

    def spent(self, study: Study, trial: FrozenTrial) -> tuple[float, float]:
        """(FLOPs, tokens) of the study's own trials before this one; one that still runs counts in full."""
        with self._lock:
            return self._read(study, True).spent(self._running(study, trial))

    def undecided(self, study: Study, trial: FrozenTrial) -> int:
        """Trials that began before this one and have no learning rate yet: other workers about to ask."""
        return sum(
            1
            for other in _compat.trials_at_ask(study)
            if other.state == TrialState.RUNNING and other.number < trial.number and self._row(other) is None
        )

    def _running(self, study: Study, trial: FrozenTrial) -> Iterator[Placed]:
        for other in _compat.trials_at_ask(study):
            if other.state == TrialState.RUNNING and other.number != trial.number:
                row = self._row(other)
                if row is not None and tuning_of(other) != "self":
                    yield row, strategy_of(other)

    def _row(self, other: FrozenTrial) -> Row | None:
        """Where another trial is, None where it has yet to choose, or where what it says is no number."""
        try:
            return unfinished_row(other, self.names)
        except ValueError:
            return None

    def _read(self, study: Study, at_ask: bool) -> StudyHistory:
        past = self._update(study, at_ask)
        sources = [self._update(s, False) for s in self.sources]
        past.sources = [*sources]
        for source in self.sources:
            if source.direction != study.direction:
                raise ValueError(
                    f"source study {source.study_name!r} is to {source.direction.name.lower()} and study "
                    f"{study.study_name!r} to {study.direction.name.lower()}; a law cannot serve both, "
                    "negate the values of one of them"
                )
        for of, read in ((study, past), *zip(self.sources, sources, strict=True)):
            self._tell_about(of, read)
        finished = sum(k.finished for k in past.all)
        if finished and not any(k.positive for k in past.all):
            maximize = study.direction == StudyDirection.MAXIMIZE
            self.tell_once(
                "direction",
                f"no law can be fitted to study {study.study_name!r}, for a law is of a loss above 0 and all "
                f"{finished} finished trials have values {'>=' if maximize else '<='} 0 to "
                f"{'maximize' if maximize else 'minimize'}; return the loss and minimize it, or for a score "
                "minimize 1 - score",
            )
        return past

    def tell_once(self, code: str, message: str) -> None:
        """Warn with a `StudyWarning`, the first time for each code."""
        if code not in self._told:
            self._told.add(code)
            warnings.warn(message, StudyWarning, stacklevel=4)

    def _update(self, study: Study, at_ask: bool) -> StudyHistory:
        storage, study_id = _compat.storage_of(study), _compat.study_id(study)
        past = self._past.setdefault(storage, {}).setdefault(study_id, StudyHistory())
        if not at_ask and _compat.ended_count(study) == len(past.seen):
            return past
        if at_ask:
            ended = [t for t in _compat.trials_at_ask(study) if t.state in ENDED]
        else:
            ended = study.get_trials(deepcopy=False, states=ENDED)
        if len(ended) > len(past.seen):
            check_single_objective(study, "a law")
            past.take(ended, self.names, study)
        return past

    def _tell_about(self, study: Study, past: StudyHistory) -> None:
        """Say once what of a study cannot be used."""
        if past.left_out:
            number, why = next(iter(past.left_out.items()))
            self.tell_once(
                f"left-out-{study.study_name}",
                f"{len(past.left_out)} trials of study {study.study_name!r} are left out, trial {number} for one: "
                f"{why}",
            )
        if past.early:
            first, share = next(iter(past.early.items()))
            self.tell_once(
                f"early-{study.study_name}",
                f"completed trials of study {study.study_name!r} are taken for runs that were stopped early, whose "
                f"losses teach no law: the last report of trial {first} is at {share:.0%} of its "
                f"{self.names.tokens!r}; report the end too, in tokens seen, or report nothing",
            )
        if study in self.sources and past.seen and not past.finished and not past.left_out:
            names = ", ".join(repr(n) for n in sorted(self.names.names()))
            self.tell_once(
                f"no-size-{study.study_name}",
                f"none of the {len(past.seen)} ended trials of source study {study.study_name!r} has all of {names} "
                "as parameters or user attributes, so it teaches nothing; its names must be those of this study",
            )
