"""The only room that leans on how Ray Tune is built inside rather than on its interface; read from 2.60."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ray.tune.schedulers import SCHEDULER_IMPORT, AsyncHyperBandScheduler
from ray.tune.search import SEARCH_ALG_IMPORT

NAME = "scaling_law"


class _AnyName(str):
    """A parameter name that equals every name."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str)

    __hash__ = str.__hash__


class ByName:
    """What Tune finds under a name: it makes the object, and sees every option.

    `tune.create_scheduler` passes on only the options that the signature names and drops the others without a
    word. A signature whose one name equals all others lets a misspelt option reach the class, which refuses it.
    """

    def __init__(self, load: Callable[[], Callable[..., Any]]) -> None:
        self._load = load
        name = _AnyName("options")
        self.__signature__ = inspect.Signature([inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)])

    def __call__(self, **options: Any) -> Any:
        return self._load()(**options)


def _scheduler() -> Callable[..., Any]:
    return import_module("metaopt_hpo_ray.scheduler").ScalingLawScheduler  # type: ignore[no-any-return]


def _searcher() -> Callable[..., Any]:
    return import_module("metaopt_hpo_ray.searcher").ScalingLawSearch  # type: ignore[no-any-return]


def register_by_name() -> None:
    """Make the scheduler and the searcher known to Tune as "scaling_law"."""
    SCHEDULER_IMPORT[NAME] = ByName(_scheduler)
    by_name = ByName(_searcher)
    SEARCH_ALG_IMPORT[NAME] = lambda: by_name


def in_train_worker() -> bool:
    """True in a worker of Ray Train rather than in a function that Tune runs itself."""
    from ray.train.v2._internal.execution.train_fn_utils import get_train_fn_utils

    try:
        get_train_fn_utils()
    except RuntimeError:
        return False
    return True


def in_trial() -> bool:
    """True in a function that Tune runs as a trial."""
    from ray.tune.trainable.trainable_fn_utils import _in_tune_session

    return bool(_in_tune_session())


def latest_checkpoint(trial: Any) -> Any:
    """What Tune will make a trial go on from (`checkpoint` and `metrics`), or None."""
    return trial.run_metadata.checkpoint_manager.latest_checkpoint_result


def kept_checkpoints(trial: Any) -> list[Any]:
    """A trial's own checkpoints that Tune has kept, the newest first."""
    kept = trial.run_metadata.checkpoint_manager.best_checkpoint_results
    return sorted(kept, key=lambda r: -int(r.metrics.get("training_iteration", 0)))


def go_on_from(trial: Any, result: Any) -> None:
    """Make a trial that is about to start go on from another checkpoint, or, with None, from its beginning.

    Tune's own population based training does the same to hand one trial's weights to another.
    """
    trial.run_metadata.checkpoint_manager._latest_checkpoint_result = result


def will_checkpoint(result: Any) -> bool:
    """True where a trial's report came with a checkpoint, which Tune registers after its callbacks."""
    return bool(result.get("should_checkpoint"))


def asha_state(asha: AsyncHyperBandScheduler) -> dict[str, Any]:
    """The rungs of an ASHA scheduler as plain data."""
    brackets = asha._brackets
    return {
        "rungs": [[[milestone, dict(seen)] for milestone, seen in b._rungs] for b in brackets],
        "trials": {trial: brackets.index(b) for trial, b in asha._trial_info.items()},
        "stopped": asha._num_stopped,
    }


def set_asha_state(asha: AsyncHyperBandScheduler, state: dict[str, Any]) -> None:
    """Give an ASHA scheduler of the same settings the rungs of another."""
    for bracket, rungs in zip(asha._brackets, state["rungs"], strict=True):
        bracket._rungs = [(milestone, dict(seen)) for milestone, seen in rungs]
    asha._trial_info = {trial: asha._brackets[i] for trial, i in state["trials"].items()}
    asha._num_stopped = state["stopped"]


def asha_knows(asha: AsyncHyperBandScheduler, trial: str) -> bool:
    """True where the trial was added; adding it again would draw its bracket anew."""
    return trial in asha._trial_info


def asha_properties(asha: AsyncHyperBandScheduler) -> tuple[str | None, str | None]:
    """(metric, mode) an ASHA scheduler was made with."""
    return asha._metric, asha._mode
