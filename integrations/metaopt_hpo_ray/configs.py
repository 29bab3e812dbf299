"""tuner_configs: the one call that builds a Tuner's configs, so that nothing can be forgotten, and checks them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig
from ray.tune.schedulers import (
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
    create_scheduler,
)
from ray.tune.search import Searcher

from metaopt_hpo.trials.logged_results import METRIC, PROGRESS
from metaopt_hpo_ray import _compat
from metaopt_hpo_ray.columns import TuneWarning
from metaopt_hpo_ray.fair import Fair
from metaopt_hpo_ray.journal_callback import JournalCallback
from metaopt_hpo_ray.scheduler import ScalingLawScheduler
from metaopt_hpo_ray.shown import show_decisions
from metaopt_hpo_ray.storage import warn_unshared
from metaopt_hpo_ray.supply import innermost, make_supply

RETRIES = 2

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
    max_failures: int | None = None,
    fail_fast: bool | str = False,
    num_to_keep: int | None = KEEP,
    checkpoint_frequency: int = 0,
    checkpoint_at_end: bool | None = None,
    tune_options: Mapping[str, Any] | None = None,
    run_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Keyword arguments of a `tune.Tuner`, wired so that the law, the decisions and the curves survive a restore.

        tuner = tune.Tuner(train, **tuner_configs(param_space=space, num_samples=64))
        results = tuner.fit()
        table = trial_table(results)

    Args:
        param_space: of the trials; with `size`, `tokens`, `batch` and `lr` under the scheduler's names.
        scheduler: a `ScalingLawScheduler` by default; any other, or its name, is wired to a `JournalCallback` too.
        search_alg: a searcher or its name, with a space of its own or limited by Tune's `ConcurrencyLimiter`, or None
            for Tune's own random and grid search.
        metric, mode: as in `TuneConfig`.
        num_samples, max_concurrent_trials, reuse_actors: as in `TuneConfig`; num_samples=-1 draws trials until
            `tune_options={"time_budget_s": …}`, a stopper or an interrupt ends the experiment.
        name, storage_path: as in `RunConfig`.
        max_failures: retries of a trial whose process dies (default 2: a preempted worker is not a bad trial; 0 with
            `fail_fast`).
        fail_fast: True ends the experiment with the first failure.
        num_to_keep: checkpoints kept of each trial (default 2). Tune saves the experiment about every ten
            seconds; where a trial saves more than that many checkpoints meanwhile, the one that a killed
            driver's snapshot names may be gone, and the trial fails in the restore: keep all (None) there.
        checkpoint_frequency, checkpoint_at_end: of a class Trainable, in iterations; without them it is not
            checkpointed on its way. Functions pass checkpoints to `tune.report` themselves.
        tune_options, run_options: any other field of `TuneConfig` and `RunConfig`; a `checkpoint_config` or a
            `failure_config` given here stands for the arguments above.

    Returns:
        `param_space`, `tune_config` and `run_config`.

    Raises:
        ValueError: what would only fail, or silently do the wrong thing, once the experiment runs.

    Warns:
        TuneWarning: what may be meant, but rarely is.

    Examples:
        >>> from ray import tune
        >>> from metaopt_hpo_ray import tuner_configs
        >>> space = {"lr": tune.loguniform(1e-4, 1e-1), "size": 1e6, "tokens": 1e8, "batch": 1e4}
        >>> sorted(tuner_configs(param_space=space))
        ['param_space', 'run_config', 'tune_config']
    """
    _compat.self_check()
    show_decisions()
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
        own_space = isinstance(search_alg, str) or isinstance(innermost(search_alg), Searcher)
        missing = scheduler.columns.missing(param_space)
        if missing and not own_space:  # a searcher may choose them itself
            raise ValueError(
                f"param_space has no {', '.join(map(repr, missing))}, without which no law can be fitted; add "
                "them, or name the entries with ScalingLawScheduler(size=…, tokens=…, batch=…, lr=…)"
            )
        if unusable := scheduler.columns.unusable(param_space):
            raise ValueError(
                f"param_space has {', '.join(unusable)}, where a law needs numbers > 0; give them so, or name other "
                "entries with ScalingLawScheduler(size=…, tokens=…, batch=…, lr=…)"
            )
        search_alg, max_concurrent_trials = make_supply(
            search_alg, max_concurrent_trials, metric=metric, mode=mode, space=param_space
        )
    run_fields = dict(run_options or {})
    checkpoints = run_fields.pop("checkpoint_config", None) or CheckpointConfig(
        num_to_keep=_kept(num_to_keep),
        checkpoint_frequency=checkpoint_frequency,
        checkpoint_at_end=checkpoint_at_end,
    )
    failures = run_fields.pop("failure_config", None) or FailureConfig(
        max_failures=(0 if fail_fast else RETRIES) if max_failures is None else max_failures,
        fail_fast=fail_fast,
    )
    _check_checkpoints(scheduler, checkpoints.num_to_keep)
    told = warn_unshared(storage_path)
    keeper = JournalCallback(
        scheduler if isinstance(scheduler, ScalingLawScheduler) else None,
        metric=metric,
        maximize=mode == "max",
        progress=scheduler.progress if isinstance(scheduler, ScalingLawScheduler) else PROGRESS,
        pauses=type(scheduler).__name__ if isinstance(scheduler, PAUSING) else "",
        decides=type(scheduler) is not FIFOScheduler,
        check_storage=not told,
    )
    callbacks = [*(run_fields.pop("callbacks", None) or ()), keeper]
    return {
        "param_space": dict(param_space),
        "tune_config": TuneConfig(
            metric=metric,
            mode=mode,
            search_alg=search_alg,
            scheduler=Fair(scheduler) if _compares(scheduler) else scheduler,
            num_samples=num_samples,
            max_concurrent_trials=max_concurrent_trials,
            reuse_actors=reuse_actors,
            **_known(TuneConfig, tune_options),
        ),
        "run_config": RunConfig(
            name=name,
            storage_path=storage_path,
            callbacks=callbacks,
            failure_config=failures,
            checkpoint_config=checkpoints,
            **_known(RunConfig, run_fields),
        ),
    }


def _compares(scheduler: TrialScheduler) -> bool:
    """True for a scheduler that compares running trials, and does not know which of them compare."""
    return type(scheduler) is not FIFOScheduler and not isinstance(scheduler, ScalingLawScheduler | Fair)


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


def _kept(num_to_keep: int | None) -> int | None:
    """`num_to_keep`, checked before Tune's own config refuses it in other words."""
    if num_to_keep is not None and num_to_keep < 1:
        raise ValueError(
            f"num_to_keep must be at least 1, or None to keep all, got {num_to_keep!r}: without a checkpoint a "
            "trial that is paused or retried silently starts again at its first step"
        )
    return num_to_keep


def _check_checkpoints(scheduler: TrialScheduler, num_to_keep: int | None) -> None:
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
