"""Fair: one of Tune's schedulers that compares each trial only with those it may fairly be compared with.

Tune's schedulers compare running losses at equal times. A run that finds its own learning rate starts low and settles
late, and a schedule that cools down at its end stands high until then: beside runs that decay all along, such a run is
stopped whether or not it would win (`LRStrategy.comparable_from`). So its strategy gets a scheduler of its own, made
like the one that was given; population based training then copies weights within a strategy only.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from metaopt_hpo.strategies.registry import get, tuning_of
from metaopt_hpo_ray.strategy import build_strategy

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController


def group_of(config: Mapping[str, Any]) -> str:
    """Name of the strategy whose trials a trial is compared with; "" for all whose running losses compare."""
    strategy = config.get("strategy")
    if not isinstance(strategy, str):
        return ""
    try:
        late = build_strategy(config).comparable_from > 0
    except Exception:  # a user's own word, or options that the trial itself will refuse
        late = is_late(strategy)
    return strategy if late else ""


@lru_cache(maxsize=64)
def is_late(strategy: str) -> bool:
    """True where the running losses of a strategy, with its defaults, do not compare with others'."""
    try:
        return get(strategy)().comparable_from > 0
    except Exception:  # none of ours, or one with an option that has no default
        return tuning_of(strategy) == "self"


class Fair(TrialScheduler):
    """A scheduler for each group of trials, all made like `scheduler`.

    Args:
        scheduler: any of Tune's; the first group's is this very object.
    """

    def __init__(self, scheduler: TrialScheduler) -> None:
        self.given = scheduler
        self._new = scheduler
        self._groups: dict[str, TrialScheduler] = {}
        self._members: dict[str, str] = {}

    @property
    def metric(self) -> str | None:
        """The result that is judged."""
        return self.given.metric  # type: ignore[no-any-return]

    @property
    def supports_buffered_results(self) -> bool:
        """As the scheduler that was given."""
        return bool(self.given.supports_buffered_results)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Tell the scheduler that was given; those of other groups are made from it as it is then."""
        done = bool(self.given.set_search_properties(metric, mode, **spec))
        self._new = copy.deepcopy(self.given)
        return done

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        """A trial joins its group."""
        group = self._members.setdefault(trial.trial_id, group_of(trial.config))
        if group not in self._groups:
            self._groups[group] = copy.deepcopy(self._new) if self._groups else self.given
        self._groups[group].on_trial_add(self._view(tune_controller, group), trial)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Handed on."""
        scheduler, view = self._of(tune_controller, trial)
        scheduler.on_trial_error(view, trial)

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """The group's decision; one whose report says that it finds its own lr, alone among others, goes on."""
        finds = result.get("tuning") == "self" or is_late(str(result.get("strategy", "")))
        if finds and not self._members.get(trial.trial_id):
            return TrialScheduler.CONTINUE
        scheduler, view = self._of(tune_controller, trial)
        return str(scheduler.on_trial_result(view, trial, result))

    def on_trial_complete(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> None:
        """Handed on."""
        scheduler, view = self._of(tune_controller, trial)
        scheduler.on_trial_complete(view, trial, result)

    def on_trial_remove(self, tune_controller: TuneController, trial: Trial) -> None:
        """Handed on."""
        scheduler, view = self._of(tune_controller, trial)
        scheduler.on_trial_remove(view, trial)

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """The first that a group chooses."""
        for group, scheduler in self._groups.items():
            chosen = scheduler.choose_trial_to_run(self._view(tune_controller, group))
            if chosen is not None:
                return chosen
        return None

    def debug_string(self) -> str:
        """Each group's."""
        if len(self._groups) < 2:
            return str(self.given.debug_string())
        return "\n".join(f"{group or 'others'}: {s.debug_string()}" for group, s in self._groups.items())

    def save(self, checkpoint_path: str) -> None:
        """As the scheduler that was given; Tune never asks."""
        self.given.save(checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        """As the scheduler that was given; Tune never asks."""
        self.given.restore(checkpoint_path)

    def _of(self, tune_controller: TuneController, trial: Trial) -> tuple[TrialScheduler, Any]:
        group = self._members.get(trial.trial_id, "")
        return self._groups.get(group, self.given), self._view(tune_controller, group)

    def _view(self, tune_controller: TuneController, group: str) -> Any:
        if len(self._groups) < 2:
            return tune_controller
        return _View(tune_controller, self._members, group)


class _View:
    """Tune's controller with the trials of one group in sight."""

    def __init__(self, controller: TuneController, members: dict[str, str], group: str) -> None:
        self._controller = controller
        self._members = members
        self._group = group

    def get_trials(self) -> list[Trial]:
        return [t for t in self._controller.get_trials() if self._members.get(t.trial_id) == self._group]

    def get_live_trials(self) -> set[Trial]:
        return {t for t in self._controller.get_live_trials() if self._members.get(t.trial_id) == self._group}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._controller, name)
