"""What trials report: numbers of every kind, facts, and what is passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from one_trial import SPACE, started, storage_at, wired
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from stub_cluster import StubCluster, result_of, stub_trial

from metaopt_hpo_ray import JournalCallback, ScalingLawScheduler, ScalingLawSearch, trial_table

SCALARS = [float, np.float32, np.float64, np.int64, torch.tensor, lambda x: np.array(float(x))]


@pytest.mark.parametrize("kind", SCALARS)
@pytest.mark.parametrize("name", ["loss", "eval/loss"])
def test_numbers_of_every_kind_flat_or_nested_are_numbers(kind: Any, name: str, tmp_path: Path) -> None:
    loss, tokens = kind(3), kind(20_000_000)
    flat = {name: loss, "tokens_seen": tokens}
    nested = {"eval": {"loss": loss}, "tokens_seen": tokens} if "/" in name else flat
    keeper = JournalCallback(metric=name)
    keeper.open_journal(storage_at(tmp_path))
    trial = stub_trial("t", **SPACE)
    trial.run_metadata.last_result = nested
    keeper.on_trial_result(1, [trial], trial, nested)
    keeper.on_trial_complete(1, [trial], trial)
    scheduler = ScalingLawScheduler(metric=name, background=False)
    JournalCallback(scheduler)
    cluster, trial = started(scheduler)
    assert scheduler.on_trial_result(cluster, trial, flat) == TrialScheduler.CONTINUE
    scheduler.on_trial_complete(cluster, trial, flat)
    search = ScalingLawSearch(candidates=[(1e6, 2e7)], lr=(1e-4, 1e-1), batch=8)
    search.set_search_properties(name, "min", {"strategy": "wsd"})
    search.suggest("t")
    search.on_trial_complete("t", flat)
    for book in (keeper.book, scheduler.book, search.book):
        entry = book.entries["t"]
        assert (entry.state, entry.last) == ("complete", (2e7, 3.0))
    assert trial_table(tmp_path).frame.loss[0] == 3.0


@pytest.mark.parametrize("loss", ["n/a", None, [3.0], {"x": 3.0}, True, np.zeros(2)])
def test_what_is_no_number_is_passed_over_and_said_once(loss: Any, caplog: pytest.LogCaptureFixture) -> None:
    scheduler, keeper = wired()
    cluster, trial = started(scheduler)
    for tokens in (1e6, 2e6, 3e6):
        result = result_of(trial, tokens, loss)
        assert scheduler.on_trial_result(cluster, trial, result) == TrialScheduler.CONTINUE
        keeper.on_trial_result(1, [trial], trial, result)
    assert not scheduler.book.entries["t"].points
    assert caplog.text.count("no number as 'loss'") == 1
    assert "Traceback" not in caplog.text


REPORTED = {
    "lr": 1e-9,
    "size": 5.0,
    "batch": [1],
    "strategy": "mine",
    "seed": 7,
    "workload": "x",
    "memory": "2 GB",
}


@pytest.mark.parametrize("keeper_only", [True, False])
def test_what_a_plain_trainable_reports_by_the_names_of_facts_says_nothing_of_the_trial(
    keeper_only: bool,
) -> None:
    scheduler, keeper = (None, JournalCallback()) if keeper_only else wired()
    trial = stub_trial("t", **SPACE, strategy="cosine", seed=3)
    for tokens in (1e6, 2e7):
        result = result_of(trial, tokens, 3.0, found_lr=2e-3, **REPORTED)
        if scheduler is not None:
            scheduler.on_trial_result(None, trial, result)  # type: ignore[arg-type]
        keeper.on_trial_result(1, [trial], trial, result)
    record = keeper.book.entries["t"].record()
    assert (record.lr, record.size, record.batch, record.strategy, record.seed) == (
        1e-2,
        1e6,
        1e4,
        "cosine",
        3,
    )
    assert (record.found_lr, record.tuning) == (2e-3, "external")


def test_a_trial_run_says_who_tunes_and_what_was_found() -> None:
    keeper = JournalCallback()
    trial = stub_trial("t", **SPACE)
    said = {
        "process": "p",
        "tuning": "self",
        "found_lr": 2e-3,
        "strategy": "metaoptimize",
        "unique_tokens": 1e6,
    }
    keeper.on_trial_result(1, [trial], trial, result_of(trial, 2e7, 3.0, **said))
    record = keeper.book.entries["t"].record()
    assert record.self_tuning
    assert (record.tuning, record.found_lr, record.unique_tokens) == ("self", 2e-3, 1e6)


def test_sizes_that_come_late_from_the_config_or_the_results_are_taken() -> None:
    scheduler, _ = wired()
    cluster = StubCluster(scheduler, lambda t: [(1.0, 1.0)], slots=1)
    trial = stub_trial("t", tokens=2e7, batch=1e4, lr=1e-2)
    cluster.add(trial)
    trial.set_status(Trial.RUNNING)
    scheduler.on_trial_result(cluster, trial, result_of(trial, 1e6, 3.0, size=1e6))
    assert scheduler.book.entries["t"].described
    other = stub_trial("u", tokens=2e7, batch=1e4, lr=1e-2)
    cluster.add(other)
    other.config["size"] = 4e6
    scheduler.on_trial_add(cluster, other)
    assert scheduler.book.entries["u"].size == 4e6


def test_population_based_training_changes_a_trials_lr_through_its_config() -> None:
    keeper = JournalCallback()
    trial = stub_trial("t", **SPACE)
    keeper.on_trial_result(1, [trial], trial, result_of(trial, 1e6, 3.0))
    trial.config["lr"] = 2e-2
    keeper.on_trial_result(1, [trial], trial, result_of(trial, 2e6, 2.9))
    record = keeper.book.entries["t"].record()
    assert (record.lr, record.params["lr_path"]) == (2e-2, "0:0.01 1e+06:0.02")
