"""Launches: which trials wait, which are on their way, and which is next.

A trial that Tune adds is set to PAUSED at once, the one status in which Tune leaves it alone, and given back by
`choose` when its turn has come.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial

from metaopt_hpo_ray.judge import Judge
from metaopt_hpo_ray.state import TrialBook

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

logger = logging.getLogger(__name__)

AHEAD = 8
"""Trials launched and not yet running: enough to hide the seconds an actor takes to start, few enough that the
order can still follow a new law."""

WAITING = (Trial.PENDING, Trial.PAUSED)
"""Statuses of a trial that has no resources."""


class Launches:
    """The trials without resources, launched in the judge's order.

    Args:
        book: where a launch, or a trial that is not launched, is entered.
        judge: says which of the trials that wait is next.
    """

    def __init__(self, book: TrialBook, judge: Judge) -> None:
        self._book = book
        self._judge = judge
        self._held: dict[str, Trial] = {}
        self._released: dict[str, Trial] = {}

    def hold(self, trial: Trial) -> None:
        """The trial waits for its turn."""
        # PENDING trials are started by Tune in its own order; only PAUSED ones wait to be chosen
        trial.set_status(Trial.PAUSED)
        if trial.storage is not None:
            trial.init_local_path()  # Tune's console asks every trial that is not PENDING for its folder
        self._held[trial.trial_id] = trial
        self._judge.hold(trial.trial_id)

    def start(self, trial: Trial) -> None:
        """The trial may have resources."""
        key = trial.trial_id
        self._held.pop(key, None)
        self._judge.let_go(key)
        self._judge.started(key)
        self._book.launch(key)
        if trial.status in WAITING:
            self._released[key] = trial

    def ended(self, key: str) -> None:
        """The trial has ended, well or badly."""
        self._judge.ended(key)
        self._released.pop(key, None)
        self._held.pop(key, None)

    def choose(self, controller: TuneController) -> Trial | None:
        """The next trial to give resources; the same one until Tune has taken it."""
        first: Trial | None = None
        for key, trial in list(self._released.items()):
            if trial.status not in WAITING:
                del self._released[key]
            elif trial.status == Trial.PAUSED:
                return trial  # chosen before, and not taken yet
            else:
                first = first or trial
        while len(self._released) < AHEAD and (found := self._judge.next()) is not None:
            key, decision = found
            trial = self._held[key]
            if trial.status not in WAITING:
                self.ended(key)
            elif decision.action == "launch":
                logger.info("trial %s: launch: %s", key, decision.reason)
                if decision.spared:
                    self._book.spare(key)
                self.start(trial)
                return trial
            else:
                self._book.close(key, "pruned", decision.reason)
                logger.info("trial %s: stop (pruned): %s", key, decision.reason)
                self.ended(key)
                controller.stop_trial(trial)
        return first

    def any(self) -> Trial | None:
        """A trial that waits, whatever the judge would say: where it fails, the experiment must go on."""
        for trial in [*self._released.values(), *self._held.values()]:
            if trial.status in WAITING:
                self.start(trial)
                return trial
        return None

    def forget(self) -> None:
        """After a restore Tune adds the trials anew."""
        self._held, self._released = {}, {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": {}, "_released": {}}
