"""Wrapped: an ASHA scheduler that decides where the law cannot judge."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.logged_trial import Cell, LoggedTrial
from metaopt_hpo_ray import _compat
from metaopt_hpo_ray.fair import is_late

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController


class Wrapped:
    """The scheduler given as `wrapped`, one for each size and number of tokens, judging at equal tokens.

    Trials of different sizes, or planned for different tokens, have no business in one rung, and one of a smaller
    batch reports later. So its time counts tokens: where its `time_attr` is the result that does, as they are; else as
    the part of a trial's planned tokens, in units of its `max_t`. What it knows follows from the book alone.

    Raises:
        ValueError: it does not decide from results alone.
    """

    def __init__(self, asha: AsyncHyperBandScheduler, book: Logbook, progress: str) -> None:
        if not isinstance(asha, AsyncHyperBandScheduler):
            raise ValueError(
                f"wrapped must be an ASHAScheduler, which decides from results alone, got {type(asha).__name__}; "
                "schedulers that pause or clone trials would undo the order of launches"
            )
        self._asha = asha
        self._book = book
        self._in_tokens = _compat.asha_time(asha)[0] == progress
        self._rungs: dict[tuple[Cell, str], AsyncHyperBandScheduler] = {}

    def judge_by(self, metric: str) -> None:
        """Take over the metric.

        Raises:
            ValueError: it was made to judge another.
        """
        own, mode = _compat.asha_properties(self._asha)
        if mode == "max" or (own and own != metric):
            raise ValueError(
                f"the wrapped scheduler judges {own!r} with mode {mode!r} and ScalingLawScheduler "
                f"{metric!r} with mode 'min'; leave metric and mode out of it"
            )
        self._asha.set_search_properties(None if own else metric, None if mode else "min")

    def stops(self, controller: TuneController, trial: Trial, result: Mapping[str, Any], metric: str) -> bool:
        """Whether it would stop the trial after its last report, which is in the book."""
        entry = self._book.entries.get(trial.trial_id)
        if entry is None or not math.isfinite(entry.last[1]) or not (self._in_tokens or entry.tokens > 0):
            return False
        rung = _rung(entry)
        if rung not in self._rungs:
            self._rungs[rung] = copy.deepcopy(self._asha)
            for other in self._book.entries.values():
                if other is not entry and _rung(other) == rung:
                    self._tell(self._rungs[rung], controller, other)
        return self._tell(self._rungs[rung], controller, entry)

    def _tell(self, asha: AsyncHyperBandScheduler, controller: TuneController, entry: LoggedTrial) -> bool:
        """Report to ASHA what it has not seen of a trial; whether it would stop it."""
        time, most = _compat.asha_time(asha)
        metric, _ = _compat.asha_properties(asha)
        trial = _Named(entry.trial)
        if not _compat.asha_knows(asha, entry.trial):
            asha.on_trial_add(controller, trial)  # type: ignore[arg-type]
            points = sorted((t, loss) for t, (loss, *_) in entry.points.items())
        else:
            points = [entry.last]
        stop = False
        for tokens, loss in points:
            if not math.isfinite(loss):
                continue
            at = tokens if self._in_tokens else most * tokens / entry.tokens
            if at < most or self._in_tokens:
                said = asha.on_trial_result(controller, trial, {time: at, metric: loss})  # type: ignore[arg-type]
                stop = said == TrialScheduler.STOP
        return stop

    def forget(self) -> None:
        """After a restore the book is another; the rungs are filled from it when they are needed."""
        self._rungs = {}


def _rung(entry: LoggedTrial) -> tuple[Cell, str]:
    """Trials of one cell compete; a strategy whose running losses say little of its end competes with itself."""
    return entry.cell, entry.strategy if entry.self_tuning or is_late(entry.strategy) else ""


class _Named:
    """All that ASHA asks of a trial."""

    def __init__(self, key: str) -> None:
        self.trial_id = key
