"""A scheduler and its journal, with one trial started."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.fs
from ray.tune.experiment import Trial
from stub_cluster import StubCluster, stub_trial

from metaopt_hpo_ray import JournalCallback, ScalingLawScheduler

SPACE = {"size": 1e6, "tokens": 2e7, "batch": 1e4, "lr": 1e-2}


def storage_at(folder: Path) -> Any:
    return SimpleNamespace(
        storage_filesystem=pyarrow.fs.LocalFileSystem(),
        experiment_fs_path=str(folder),
        experiment_driver_staging_path=str(folder),
    )


def wired(**options: Any) -> tuple[ScalingLawScheduler, JournalCallback]:
    scheduler = ScalingLawScheduler(**{"background": False, **options})
    keeper = JournalCallback(scheduler)
    scheduler.set_search_properties("loss", "min")
    return scheduler, keeper


def started(scheduler: ScalingLawScheduler, key: str = "t", **config: Any) -> tuple[StubCluster, Trial]:
    cluster = StubCluster(scheduler, lambda t: [(1.0, 1.0)], slots=1)
    trial = stub_trial(key, **{**SPACE, **config})
    cluster.add(trial)
    assert scheduler.choose_trial_to_run(cluster) is trial
    trial.set_status(Trial.RUNNING)
    return cluster, trial
