"""After a restore: the keeper closes what Tune has forgotten, and only that."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow.fs
from ray.tune.experiment import Trial
from stub_cluster import result_of, stub_trial

from metaopt_hpo_ray import JournalCallback, ScalingLawScheduler
from metaopt_hpo_ray.journal_callback import FORGOTTEN

SPACE = {"size": 100, "tokens": 64, "batch": 8, "lr": 0.01}


def trial_in(folder: Path, key: str) -> Trial:
    trial = stub_trial(key, **SPACE)
    trial.storage = SimpleNamespace(
        storage_filesystem=pyarrow.fs.LocalFileSystem(), experiment_fs_path=str(folder)
    )
    trial.init_local_path = lambda: None  # type: ignore[method-assign]
    return trial


def test_what_tune_forgot_is_closed_with_its_cost_and_the_rest_goes_on(tmp_path: Path) -> None:
    scheduler = ScalingLawScheduler(background=False)
    keeper = JournalCallback(scheduler)
    keeper.set_state(json.loads(json.dumps(keeper.get_state())))
    old = {key: trial_in(tmp_path, key) for key in ("known", "late")}
    for trial in old.values():
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        scheduler.on_trial_result(None, trial, result_of(trial, 16.0, 2.0, pid=1))  # type: ignore[arg-type]
    keeper.on_step_end(1, [])
    snapshot = ScalingLawScheduler(background=False)  # Tune's is older than the journal
    restored = JournalCallback(snapshot)
    restored.set_state(JournalCallback(ScalingLawScheduler(background=False)).get_state())
    again = trial_in(tmp_path, "known")
    snapshot.on_trial_add(None, again)  # type: ignore[arg-type]
    restored.on_step_begin(1, [again])
    states = {k: (e.state, e.reason, e.cost) for k, e in snapshot.book.entries.items()}
    cost = 6 * 100 * 16.0
    assert states == {"known": ("running", "", cost), "late": ("failed", FORGOTTEN, cost)}
