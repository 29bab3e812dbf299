"""tuner_configs: the one call that builds a Tuner's configs, so that nothing can be forgotten, and checks them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig
from ray.tune.schedulers import (
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
    create_scheduler,
)
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter

from metaopt_hpo_ray.columns import METRIC, PROGRESS, TuneWarning
from metaopt_hpo_ray.keeper import CurveKeeper
from metaopt_hpo_ray.scheduler import ScalingLawScheduler
from metaopt_hpo_ray.searcher import ScalingLawSearch
from metaopt_hpo_ray.storage import warn_unshared

KEEP = 2
"""Checkpoints kept of each trial by default: the last, and the one before it should the last be cut short."""


SAFE_FOR_PBT = 4
"""Checkpoints to keep of each trial where others copy them."""

PAUSING = (HyperBandScheduler, MedianStoppingRule, PopulationBasedTraining)
"""Schedulers that pause running trials, which then go on from a checkpoint, or without one from their beginning."""


def tuner_configs(
    *,
    param_space: Mapping[str, Any],
    scheduler: TrialScheduler | str | None = None,
    search_alg: Any = None,
    metric: str = METRIC,
    mode: str = "min",
    num_samples: int = 1,
    max_concurrent_trials: int | None = None,
    reuse_actors: bool = False,
    name: str | None = None,
    storage_path: str | None = None,
    max_failures: int = 2,
    num_to_keep: int | None = KEEP,
    tune_options: Mapping[str, Any] | None = None,
    run_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Keyword arguments of a `tune.Tuner`, wired so that the law, the decisions and the curves survive a restore.

        tuner = tune.Tuner(train, **tuner_configs(param_space=space, num_samples=64))
        results = tuner.fit()
        table = trial_table(results)

    Args:
        param_space: of the trials; with `size`, `tokens`, `batch` and `lr` under the scheduler's names.
        scheduler: a `ScalingLawScheduler` by default; any other, or its name, is wired to a `CurveKeeper` too.
        search_alg: a searcher, or None for Tune's own random and grid search.
        metric, mode: as in `TuneConfig`.
        num_samples, max_concurrent_trials, reuse_actors: as in `TuneConfig`.
        name, storage_path: as in `RunConfig`.
        max_failures: retries of a trial whose process dies (default 2: a preempted worker is not a bad trial).
        num_to_keep: checkpoints kept of each trial (default 2). Tune saves the experiment about every ten
            seconds; where a trial saves more than that many checkpoints meanwhile, the one that a killed
            driver's snapshot names may be gone, and the trial fails in the restore: keep all (None) there.
        tune_options, run_options: any other field of `TuneConfig` and `RunConfig`.

    Returns:
        `param_space`, `tune_config` and `run_config`.

    Raises:
        ValueError: what would only fail, or silently do the wrong thing, once the experiment runs.

    Warns:
        TuneWarning: what may be meant, but rarely is.
    """
    scheduler = ScalingLawScheduler() if scheduler is None else scheduler
    _check_kinds(scheduler, search_alg)
    if isinstance(scheduler, str):
        scheduler = create_scheduler(scheduler)
    assert isinstance(scheduler, TrialScheduler)
    if mode not in ("min", "max"):
        raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
    own = getattr(search_alg, "mode", None)
    if own is not None and own != mode:
        raise ValueError(
            f"{type(search_alg).__name__} has mode={own!r} and tuner_configs has mode={mode!r}; leave mode out of "
            "the searcher, which gets it from here"
        )
    if isinstance(scheduler, ScalingLawScheduler):
        if mode != "min":
            raise ValueError(
                f"ScalingLawScheduler needs mode='min', got {mode!r}: a law is of a positive loss; report the "
                "loss, or for a score 1 − score"
            )
        missing = scheduler.columns.missing(param_space)
        if missing and not isinstance(search_alg, ScalingLawSearch):
            raise ValueError(
                f"param_space has no {', '.join(map(repr, missing))}, without which no law can be fitted; add "
                "them, or name the entries with ScalingLawScheduler(size=…, tokens=…, batch=…, lr=…)"
            )
        if unusable := scheduler.columns.unusable(param_space):
            raise ValueError(
                f"param_space has {', '.join(unusable)}, where a law needs numbers > 0; give them so, or name other "
                "entries with ScalingLawScheduler(size=…, tokens=…, batch=…, lr=…)"
            )
        _check_searcher(search_alg, max_concurrent_trials)
    _check_checkpoints(scheduler, num_to_keep)
    told = warn_unshared(storage_path)
    keeper = CurveKeeper(
        scheduler if isinstance(scheduler, ScalingLawScheduler) else None,
        metric=metric,
        maximize=mode == "max",
        progress=scheduler.progress if isinstance(scheduler, ScalingLawScheduler) else PROGRESS,
        pauses=type(scheduler).__name__ if isinstance(scheduler, PAUSING) else "",
        check_storage=not told,
    )
    run_fields = dict(run_options or {})
    callbacks = [*run_fields.pop("callbacks", ()), keeper]
    return {
        "param_space": dict(param_space),
        "tune_config": TuneConfig(
            metric=metric,
            mode=mode,
            search_alg=search_alg,
            scheduler=scheduler,
            num_samples=num_samples,
            max_concurrent_trials=max_concurrent_trials,
            reuse_actors=reuse_actors,
            **_known(TuneConfig, tune_options),
        ),
        "run_config": RunConfig(
            name=name,
            storage_path=storage_path,
            callbacks=callbacks,
            failure_config=FailureConfig(max_failures=max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=num_to_keep),
            **_known(RunConfig, run_fields),
        ),
    }


def _known(kind: type, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """`options`, after a check that the config has such fields and that no argument sets them already."""
    own = {
        "metric",
        "mode",
        "search_alg",
        "scheduler",
        "num_samples",
        "max_concurrent_trials",
        "reuse_actors",
    }
    own |= {"name", "storage_path", "failure_config", "checkpoint_config"}
    fields = {f.name for f in dataclasses.fields(kind)} - own
    for key in options or {}:
        if key not in fields:
            raise ValueError(
                f"{kind.__name__} has no option {key!r} here; it has {', '.join(sorted(fields))}"
            )
    return dict(options or {})


def _check_kinds(scheduler: Any, search_alg: Any) -> None:
    """Optuna's pruners have no place in Tune: OptunaSearch never asks the one of its study."""
    if callable(getattr(scheduler, "prune", None)) or callable(getattr(search_alg, "prune", None)):
        pruner = scheduler if callable(getattr(scheduler, "prune", None)) else search_alg
        raise ValueError(
            f"{type(pruner).__name__} is an Optuna pruner, which Tune never asks, not even with OptunaSearch; stop "
            "trials with scheduler=ScalingLawScheduler(…), or another of Tune's schedulers"
        )
    if not isinstance(scheduler, TrialScheduler | str):
        raise ValueError(f"scheduler must be one of Tune's schedulers, got {type(scheduler).__name__}")


def _check_searcher(search_alg: Any, max_concurrent_trials: int | None) -> None:
    """Held trials wait as PAUSED, so Tune would ask a searcher for all of them before any has taught it."""
    if search_alg is None or isinstance(search_alg, BasicVariantGenerator | ConcurrencyLimiter | str):
        return
    if max_concurrent_trials is None:
        warnings.warn(
            f"ScalingLawScheduler holds trials back, and Tune asks {type(search_alg).__name__} for new ones "
            "meanwhile, all num_samples before any has finished; set max_concurrent_trials",
            TuneWarning,
            stacklevel=3,
        )


def _check_checkpoints(scheduler: TrialScheduler, num_to_keep: int | None) -> None:
    if num_to_keep is not None and num_to_keep < 1:
        raise ValueError(
            f"num_to_keep must be at least 1, or None to keep all, got {num_to_keep!r}: without a checkpoint a "
            "trial that is paused or retried silently starts again at its first step"
        )
    if num_to_keep == 1:
        warnings.warn(
            "num_to_keep=1 leaves no older checkpoint: a trial whose only one is lost, or replaced after Tune's last "
            f"snapshot of the experiment, starts again at its first step; keep {KEEP} or more, or all (None)",
            TuneWarning,
            stacklevel=3,
        )
    if (
        isinstance(scheduler, PopulationBasedTraining)
        and num_to_keep is not None
        and num_to_keep < SAFE_FOR_PBT
    ):
        warnings.warn(
            f"num_to_keep={num_to_keep} with population based training: a fast donor may delete the checkpoint "
            f"another trial is about to copy; keep {SAFE_FOR_PBT} or all (None)",
            TuneWarning,
            stacklevel=3,
        )
