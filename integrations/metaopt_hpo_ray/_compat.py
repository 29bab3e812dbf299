"""The only room that leans on how Ray Tune is built inside rather than on its interface; read from 2.60."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle

from metaopt_hpo.errors import MetaOptError

try:
    from ray.train.v2._internal.execution.train_fn_utils import get_train_fn_utils
    from ray.tune.callback import CallbackList
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial
    from ray.tune.schedulers import AsyncHyperBandScheduler
    from ray.tune.search import BasicVariantGenerator
    from ray.tune.search.search_generator import SearchGenerator
    from ray.tune.trainable.trainable_fn_utils import _in_tune_session
    from ray.tune.utils import flatten_dict
    from ray.tune.utils.util import _load_newest_checkpoint
except ImportError as error:
    raise ImportError(
        f'Ray {ray.__version__} is built differently inside ({error}); install "ray[tune]>=2.60,<2.61"'
    ) from error

SUPPORTED = ((2, 60), (2, 61))
"""Versions of Ray, from the first on and below the second, whose inside was read and tested; as in pyproject.toml."""

_USED: tuple[tuple[type, tuple[str, ...]], ...] = (
    (Trial, ("init_local_path", "set_status", "create_placement_group_factory", "is_saving")),
    (CallbackList, ("restore_from_dir", "CKPT_FILE_TMPL")),
    (SearchGenerator, ("has_checkpoint", "restore_from_dir", "CKPT_FILE_TMPL")),
    (BasicVariantGenerator, ("has_checkpoint", "restore_from_dir", "total_samples", "CKPT_FILE_TMPL")),
    (TuneController, ("stop_trial", "_maybe_update_trial_queue", "_requeue_restored_trials")),
)


class UnsupportedRay(MetaOptError):
    """This version of Ray is built differently inside."""


def self_check() -> None:
    """Say before anything runs, and not in the middle of each trial, where this version of Ray is built differently.

    Raises:
        UnsupportedRay: something that the plugin leans on is not there.
    """
    for kind, names in _USED:
        for name in names:
            if not hasattr(kind, name):
                low, high = (".".join(map(str, v)) for v in SUPPORTED)
                raise UnsupportedRay(
                    f"Ray {ray.__version__} has no {kind.__name__}.{name}, which metaopt_hpo_ray needs; install "
                    f'"ray[tune]>={low},<{high}"'
                )


def in_train_worker() -> bool:
    """True in a worker of Ray Train rather than in a function that Tune runs itself."""
    try:
        get_train_fn_utils()
    except RuntimeError:
        return False
    return True


def in_trial() -> bool:
    """True in a function that Tune runs as a trial."""
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


def asha_knows(asha: AsyncHyperBandScheduler, trial: str) -> bool:
    """True where the trial was added; adding it again would draw its bracket anew."""
    return trial in asha._trial_info


def asha_properties(asha: AsyncHyperBandScheduler) -> tuple[str | None, str | None]:
    """(metric, mode) an ASHA scheduler was made with."""
    return asha._metric, asha._mode


def asha_time(asha: AsyncHyperBandScheduler) -> tuple[str, float]:
    """(name of the result that is an ASHA scheduler's time, the time at which it ends every trial)."""
    return asha._time_attr, float(asha._max_t)


def stopped_as_it_waited(trial: Any) -> bool:
    """Whether a trial that now ends was between two steps: another trial's report, by way of a scheduler, ends it.

    Synchronous HyperBand pauses trials and halves them later. One whose checkpoint for the pause is still being written
    is called RUNNING. Tune itself ends no trial then: it keeps its own decisions until the checkpoint is whole.
    """
    waits = getattr(trial, "status", None) in (Trial.PAUSED, Trial.PENDING)
    return waits or bool(getattr(trial, "is_saving", False))


def met_criterion(trial: Any, result: Any) -> bool:
    """True where a result meets a stopping criterion that was given as a dictionary."""
    criteria = getattr(trial, "stopping_criterion", None) or {}
    flat = flatten_dict(dict(result))
    return any(name in flat and flat[name] >= value for name, value in criteria.items())


def set_aside_damaged(folder: str) -> list[str]:
    """Rename what Tune has saved of searchers and callbacks and cannot be read; the names of those files.

    Tune takes the newest of each kind, and where that is damaged an older one is found then.
    """
    out = []
    for pattern in (
        CallbackList.CKPT_FILE_TMPL,
        SearchGenerator.CKPT_FILE_TMPL,
        BasicVariantGenerator.CKPT_FILE_TMPL,
    ):
        for path in sorted(Path(folder).glob(pattern.format("*"))):
            try:
                cloudpickle.loads(path.read_bytes())
            except Exception:  # whatever a damaged pickle raises
                os.replace(path, path.with_name(f"damaged-{path.name}"))
                out.append(path.name)
    return out


def restore_generator(generator: Any, folder: str) -> None:
    """Restore the counts of a generator of suggestions, without its searcher's own state."""
    if isinstance(generator, SearchGenerator):
        state = _load_newest_checkpoint(folder, SearchGenerator.CKPT_FILE_TMPL.format("*"))
        if state:
            generator.set_state({k: v for k, v in state.items() if not k.startswith("name:")})
