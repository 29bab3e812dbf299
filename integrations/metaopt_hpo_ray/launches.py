"""Launches: which trials wait, which are on their way, and which is next.

A trial that Tune adds is set to PAUSED at once, the one status in which Tune leaves it alone, and given back by
`choose` when its turn has come.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial

from metaopt_hpo.scaling.policy.launching import LaunchOrder
from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo_ray.earlier_names import Restored

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

AHEAD = 8
"""Trials launched and not yet running, of each kind of resources: enough to hide the seconds an actor takes to start,
few enough that the order can still follow a new law. Tune's own TUNE_MAX_PENDING_TRIALS_PG sets another number: an
autoscaler adds nodes for no more trials than wait."""

WAITING = (Trial.PENDING, Trial.PAUSED)
"""Statuses of a trial that has no resources."""


class Launches(Restored):
    """The trials without resources, launched in the order of promise per cost.

    Args:
        book: where a launch, or a trial that is not launched, is entered.
        order: says which of the trials that wait is next.
        ahead: trials of each kind of resources that may be launched and not running yet; None follows
            TUNE_MAX_PENDING_TRIALS_PG, where that is set, and is 8 else.
    """

    def __init__(self, book: Logbook, order: LaunchOrder, ahead: int | None = None) -> None:
        self._ahead = ahead
        self._book = book
        self._order = order
        self._held: dict[str, Trial] = {}
        self._released: dict[str, tuple[Trial, Any]] = {}

    def hold(self, trial: Trial) -> None:
        """The trial waits for its turn."""
        # PENDING trials are started by Tune in its own order; only PAUSED ones wait to be chosen
        trial.set_status(Trial.PAUSED)
        if trial.storage is not None:
            trial.init_local_path()  # Tune's console asks every trial that is not PENDING for its folder
        self._held[trial.trial_id] = trial
        self._order.hold(trial.trial_id)

    def start(self, trial: Trial, reason: str) -> None:
        """The trial may have resources."""
        key = trial.trial_id
        self._held.pop(key, None)
        self._order.let_go(key)
        self._order.started(key)
        self._book.launch(key, reason)
        if trial.status in WAITING:
            self._released[key] = (trial, trial.placement_group_factory)

    def ended(self, key: str) -> None:
        """The trial has ended, well or badly."""
        self._order.ended(key)
        self._released.pop(key, None)
        self._held.pop(key, None)

    def choose(self, controller: TuneController) -> Trial | None:
        """The next trial to give resources; the same one until Tune has taken it."""
        first: Trial | None = None
        pending: dict[Any, int] = {}
        for key, (trial, kind) in list(self._released.items()):
            if trial.status not in WAITING:
                del self._released[key]
            elif trial.status == Trial.PAUSED:
                return trial  # chosen before, and not taken yet
            else:
                first = first or trial
                pending[kind] = pending.get(kind, 0) + 1
        limit = self._ahead or max_pending() or AHEAD

        def full(key: str) -> bool:
            return pending.get(self._held[key].placement_group_factory, 0) >= limit

        while (found := self._order.next(full if pending else _never)) is not None:
            key, decision = found
            trial = self._held[key]
            if trial.status not in WAITING:
                self.ended(key)
            elif decision.action == "launch":
                self._order.go_on(key, "launch", decision)
                self.start(trial, decision.reason)
                return trial
            else:
                self._order.stop(key, decision)
                self.ended(key)
                controller.stop_trial(trial)
        return first

    def any(self) -> Trial | None:
        """A trial that waits, whatever the order: where it fails, the experiment must go on."""
        for trial in [*(t for t, _ in self._released.values()), *self._held.values()]:
            if trial.status in WAITING:
                self.start(trial, "the law could not be asked")
                return trial
        return None

    def forget(self) -> None:
        """After a restore Tune adds the trials anew."""
        self._held, self._released = {}, {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": {}, "_released": {}}


def max_pending() -> int | None:
    """How many trials Tune was told to let wait for resources; None where it finds out itself."""
    told = os.environ.get("TUNE_MAX_PENDING_TRIALS_PG", "auto")
    return max(1, int(told)) if told.isdigit() else None


def _never(key: str) -> bool:
    return False
