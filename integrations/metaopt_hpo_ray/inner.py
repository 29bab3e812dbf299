"""Inner: an ASHA scheduler that decides where the law cannot judge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from metaopt_hpo_ray import _compat
from metaopt_hpo_ray.reports import is_finite

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController


class Inner:
    """The scheduler given as `inner`.

    Raises:
        ValueError: it does not decide from results alone.
    """

    def __init__(self, asha: AsyncHyperBandScheduler) -> None:
        if not isinstance(asha, AsyncHyperBandScheduler):
            raise ValueError(
                f"inner must be an ASHAScheduler, which decides from results alone, got {type(asha).__name__}; "
                "schedulers that pause or clone trials would undo the order of launches"
            )
        self._asha = asha

    def judge_by(self, metric: str) -> None:
        """Take over the metric.

        Raises:
            ValueError: it was made to judge another.
        """
        own, mode = _compat.asha_properties(self._asha)
        if mode == "max" or (own and own != metric):
            raise ValueError(
                f"the inner scheduler judges {own!r} with mode {mode!r} and ScalingLawScheduler "
                f"{metric!r} with mode 'min'; leave metric and mode out of the inner one"
            )
        self._asha.set_search_properties(None if own else metric, None if mode else "min")

    def stops(self, controller: TuneController, trial: Trial, result: Mapping[str, Any], metric: str) -> bool:
        """Whether it would stop the trial; a result without a finite metric is kept from it."""
        if not is_finite(result.get(metric)):
            return False
        if not _compat.asha_knows(self._asha, trial.trial_id):
            self._asha.on_trial_add(controller, trial)
        return self._asha.on_trial_result(controller, trial, dict(result)) == TrialScheduler.STOP

    def to_state(self) -> dict[str, Any]:
        """Its rungs as plain data."""
        return _compat.asha_state(self._asha)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up the rungs that `to_state` described."""
        _compat.set_asha_state(self._asha, state)
