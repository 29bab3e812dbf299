"""tuner_configs: what would go wrong in an experiment is said before it starts; tables are read without pickles."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.fs
import pytest
from optuna.pruners import MedianPruner
from ray import tune
from ray.tune.schedulers import FIFOScheduler, HyperBandScheduler, PopulationBasedTraining
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch
from stub_cluster import StubCluster, result_of, stub_trial

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.strategies import make
from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.schema import TableError
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_ray import (
    JournalCallback,
    ScalingLawScheduler,
    ScalingLawSearch,
    TrialRun,
    TuneWarning,
    strategy_space,
    trial_table,
    tuner_configs,
)
from metaopt_hpo_ray._compat import SUPPORTED
from metaopt_hpo_ray.journal import JOURNAL
from metaopt_hpo_ray.reader import READER

SPACE = {"size": 100, "tokens": 64, "batch": 8, "lr": tune.loguniform(1e-3, 1e-1)}


def searcher() -> ScalingLawSearch:
    return ScalingLawSearch(candidates=[(1e6, 2e7)], lr=(1e-3, 1e-1), batch=8)


def test_one_call_wires_the_scheduler_to_its_keeper() -> None:
    configs = tuner_configs(param_space=SPACE, num_samples=3)
    (keeper,) = configs["run_config"].callbacks
    scheduler = configs["tune_config"].scheduler
    assert isinstance(scheduler, ScalingLawScheduler)
    assert keeper.book is scheduler.book
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scheduler.set_search_properties("loss", "min")


def test_a_scheduler_given_by_name_is_wired_too() -> None:
    configs = tuner_configs(param_space=SPACE, scheduler="scaling_law")
    (keeper,) = configs["run_config"].callbacks
    assert keeper.book is configs["tune_config"].scheduler.book
    with pytest.raises(ValueError, match="'size'"):
        tuner_configs(param_space={"tokens": 1, "batch": 1, "lr": 0.1}, scheduler="scaling_law")


def test_any_other_scheduler_gets_its_curves_kept() -> None:
    configs = tuner_configs(param_space={}, scheduler=FIFOScheduler(), metric="accuracy", mode="max")
    assert [type(c) for c in configs["run_config"].callbacks] == [JournalCallback]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"param_space": {"lr": 0.1, "batch": 8}}, "'size', 'tokens'"),
        ({"mode": "max"}, "mode='min'"),
        ({"mode": "best"}, "'min' or 'max'"),
        ({"num_to_keep": 0}, "num_to_keep must be at least 1, or None to keep all"),
        ({"param_space": {**SPACE, "size": "7B"}}, "size='7B', where a law needs numbers > 0"),
        ({"param_space": {**SPACE, "tokens": tune.choice([64, 0])}}, "tokens=0"),
        ({"param_space": {**SPACE, "batch": {"grid_search": [8, -8]}}}, "batch=-8"),
        ({"search_alg": OptunaSearch(metric="loss", mode="max")}, "leave mode out of the searcher"),
        ({"scheduler": MedianPruner()}, "MedianPruner is an Optuna pruner, which Tune never asks"),
        ({"search_alg": MedianPruner()}, "not even with OptunaSearch; stop trials with"),
        ({"scheduler": 3}, "one of Tune's schedulers, got int"),
        ({"tune_options": {"metrics": "loss"}}, "no option 'metrics'"),
        ({"run_options": {"storage_path": "/x"}}, "no option 'storage_path'"),
    ],
)
def test_what_cannot_work_is_an_error_before_anything_runs(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tuner_configs(**{"param_space": SPACE, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": PopulationBasedTraining(hyperparam_mutations={"lr": [1.0]})}, "fast donor"),
        ({"num_to_keep": 1}, "leaves no older checkpoint"),
    ],
)
def test_what_is_rarely_meant_is_a_warning(options: dict[str, Any], message: str) -> None:
    with pytest.warns(TuneWarning, match=message):
        tuner_configs(**{"param_space": SPACE, **options})


@pytest.mark.parametrize("scheduler", [HyperBandScheduler(), FIFOScheduler()])
def test_a_trial_that_would_be_paused_without_a_checkpoint_is_named_first(
    scheduler: FIFOScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    configs = tuner_configs(param_space={}, scheduler=scheduler)
    (keeper,) = configs["run_config"].callbacks
    trial = stub_trial("t", **{**SPACE, "lr": 0.01})
    warned = []
    for more in ({"should_checkpoint": True}, {}, {}):
        keeper.on_trial_result(1, [trial], trial, result_of(trial, 8, 1.0, **more))
        warned.append(caplog.text.count("silently start it again at its first step; pass checkpoint="))
    assert warned == ([0, 1, 1] if isinstance(scheduler, HyperBandScheduler) else [0, 0, 0])


def test_a_limited_searcher_is_fine() -> None:
    tuner_configs(param_space={}, search_alg=searcher(), max_concurrent_trials=4)
    tuner_configs(param_space=SPACE, search_alg=ConcurrencyLimiter(searcher(), 4))


def test_several_nodes_without_shared_storage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True}, {"Alive": True}, {"Alive": False}])
    with pytest.warns(TuneWarning, match="cluster's 2 nodes"):
        tuner_configs(param_space=SPACE, storage_path=str(tmp_path))
    with pytest.warns(TuneWarning, match="storage_path='~/ray_results', a path of this machine"):
        tuner_configs(param_space=SPACE)
    with pytest.warns(TuneWarning, match="cluster's 2 nodes"):
        tuner_configs(param_space=SPACE, storage_path=f"file://{tmp_path}")
    tuner_configs(param_space=SPACE, storage_path="s3://bucket/runs")


def test_a_cluster_that_is_joined_later_is_looked_at_before_the_first_trial(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    configs = tuner_configs(param_space=SPACE, storage_path=str(tmp_path))
    (keeper,) = configs["run_config"].callbacks
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True}, {"Alive": True}])
    storage = SimpleNamespace(
        storage_filesystem=pyarrow.fs.LocalFileSystem(), experiment_fs_path=str(tmp_path)
    )
    with pytest.warns(TuneWarning, match="cluster's 2 nodes"):
        keeper.open_journal(storage)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keeper.on_experiment_end([])
        keeper.open_journal(storage)
    keeper.on_experiment_end([])


def test_a_trial_run_outside_a_trial_says_where_it_belongs() -> None:
    with pytest.raises(MetaOptError, match="TrainingRun"):
        TrialRun({}, None, make("wsd", lr=0.1), size=1, tokens=1, batch=1, evaluate=lambda: 0.0)  # type: ignore[arg-type]


# -- tables --------------------------------------------------------------------------------------------------


def keep(folder: Path, points: list[tuple[float, float]], maximize: bool = False) -> JournalCallback:
    """A keeper that has seen one trial of a FIFO experiment."""
    keeper = JournalCallback(maximize=maximize)
    storage = SimpleNamespace(storage_filesystem=pyarrow.fs.LocalFileSystem(), experiment_fs_path=str(folder))
    trial = stub_trial("t", **{**SPACE, "lr": 0.01, "width": 4})
    keeper.open_journal(storage)
    for process, (tokens, loss) in enumerate(points):
        keeper.on_trial_result(
            1, [trial], trial, result_of(trial, tokens, loss, pid=process // 3, hostname="h")
        )
    return keeper


def test_curves_survive_a_keeper_that_was_killed(tmp_path: Path) -> None:
    points = [(16.0, 3.0), (32.0, 2.5), (48.0, 2.2), (32.0, 2.5), (48.0, 2.2), (64.0, 2.0)]
    keep(tmp_path, points)  # never closed
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"k": "report", "id": "t", "t": 6')  # the line it was killed in
    table = trial_table(str(tmp_path))
    (record,) = table.records()
    assert record.curve is not None
    assert record.curve.tokens == (16.0, 32.0, 48.0, 64.0)
    assert record.cost == 6 * 100 * (48 + (64 - 16))
    assert record.params == {"width": 4}
    again = JournalCallback()
    storage = SimpleNamespace(
        storage_filesystem=pyarrow.fs.LocalFileSystem(), experiment_fs_path=str(tmp_path)
    )
    again.set_state({"book": Logbook().to_state()})  # Tune's snapshot, older than the journal
    again.open_journal(storage)
    assert again.table().cost() == record.cost


def test_a_new_experiment_in_an_old_folder_keeps_the_old_journal_aside(tmp_path: Path) -> None:
    keep(tmp_path, [(64.0, 2.0)])
    second = keep(tmp_path, [(16.0, 3.0)])
    (record,) = second.table().records()
    assert record.curve is not None
    assert record.curve.tokens == (16.0,)
    assert len(list(tmp_path.glob("metaopt-trials.old-*.jsonl"))) == 1


def test_where_the_journal_is_lost_curves_come_from_the_trials_own_files(tmp_path: Path) -> None:
    keeper = keep(tmp_path, [(16.0, 3.0)])
    folder = tmp_path / "train_t_0"
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps({**SPACE, "lr": 0.01}))
    (folder / "result.json").write_text(json.dumps({"trial_id": "t", "tokens_seen": 16, "loss": 3.0}) + "\n")
    (tmp_path / JOURNAL).write_text("no journal of ours")
    again = JournalCallback()
    again.set_state(json.loads(json.dumps(keeper.get_state())))
    again.open_journal(
        SimpleNamespace(storage_filesystem=pyarrow.fs.LocalFileSystem(), experiment_fs_path=str(tmp_path))
    )
    assert again.table().cost() == keeper.table().cost() == trial_table(tmp_path).cost()
    assert not again.book.entries["t"].closed, "Tune knows whether it has ended"


def test_a_maximised_metric_is_negated(tmp_path: Path) -> None:
    keeper = keep(tmp_path, [(64.0, 0.75)], maximize=True)
    (record,) = keeper.table().records()
    assert (record.loss, record.direction) == (-0.75, "maximize")


def test_a_full_disk_does_not_end_the_search_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = keep(tmp_path, [(16.0, 3.0)])
    trial = stub_trial("t", **{**SPACE, "lr": 0.01})
    write, room = os.write, [5, 0, 0]

    def full(handle: int, data: bytes) -> int:
        if not room:
            return write(handle, data)
        if (left := room.pop(0)) == 0:
            raise OSError(28, "No space left on device")
        return write(handle, data[:left])

    monkeypatch.setattr("os.write", full)
    for tokens in (32, 48, 56):
        keeper.on_trial_result(1, [trial], trial, result_of(trial, tokens, 2.0))
    assert caplog.text.count("cannot be written") == 1
    assert caplog.text.count("nothing is missing in it") == 1
    for line in (tmp_path / JOURNAL).read_text().splitlines():
        json.loads(line)
    (record,) = trial_table(tmp_path).records()
    assert record.curve is not None
    assert record.curve.tokens == (16.0, 32.0, 48.0, 56.0)


def test_a_journal_that_somebody_deletes_is_begun_anew(tmp_path: Path) -> None:
    keeper = keep(tmp_path, [(16.0, 3.0)])
    (tmp_path / JOURNAL).unlink()
    trial = stub_trial("t", **{**SPACE, "lr": 0.01})
    keeper.on_trial_result(1, [trial], trial, result_of(trial, 32, 2.0))
    (record,) = trial_table(tmp_path).records()
    assert record.curve is not None
    assert record.curve.tokens == (16.0, 32.0)


def test_one_damaged_line_loses_its_own_event_and_configs_come_from_tunes_files(tmp_path: Path) -> None:
    keep(tmp_path, [(16.0, 3.0), (64.0, 2.0)])
    folder = tmp_path / "train_t_0"
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps({**SPACE, "lr": 0.01}))
    lines = (tmp_path / JOURNAL).read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if '"add"' in line)
    lines[at] = lines[at][:10] + "\x00" + lines[at][11:]
    (tmp_path / JOURNAL).write_text("\n".join(lines) + "\n")
    with pytest.warns(TuneWarning, match="1 damaged lines .* the configs of 1 trials from their own files"):
        (record,) = trial_table(tmp_path).records()
    assert (record.size, record.lr) == (100, 0.01)
    assert record.curve is not None
    assert record.curve.tokens == (16.0, 64.0)


def test_an_experiment_without_a_keeper_is_read_from_its_files(tmp_path: Path) -> None:
    for name, end in (("a", 64), ("b", 32)):
        folder = tmp_path / f"trial_{name}"
        folder.mkdir()
        (folder / "params.json").write_text(json.dumps({**SPACE, "lr": 0.01}))
        rows = [{"tokens_seen": t, "loss": 3.0 - t / 64} for t in range(16, end + 1, 16)]
        (folder / "result.json").write_text("\n".join(map(json.dumps, rows)) + '\n{"tokens_s')
    (tmp_path / "trial_b" / "error.txt").write_text("boom")
    with pytest.warns(TuneWarning, match="may have lost rows"):
        table = trial_table(tmp_path)
    assert sorted((r.state, r.tokens) for r in table.records()) == [("complete", 64.0), ("failed", 32.0)]


def test_folders_that_hold_no_experiment_are_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no experiment"):
        trial_table(tmp_path / "nowhere")
    with pytest.warns(TuneWarning), pytest.raises(TableError, match="no trial of"):
        trial_table(tmp_path)


def test_the_keeper_writes_launches_and_stops_of_the_scheduler(tmp_path: Path) -> None:
    scheduler = ScalingLawScheduler(background=False)
    keeper = JournalCallback(scheduler)
    storage = SimpleNamespace(
        storage_filesystem=pyarrow.fs.LocalFileSystem(), experiment_fs_path=str(tmp_path)
    )
    keeper.open_journal(storage)
    cluster = StubCluster(scheduler, lambda t: [(32.0, 2.0), (64.0, 1.5)], slots=1)
    for i in range(3):
        cluster.add(stub_trial(f"t{i}", **{**SPACE, "lr": 0.01 * (i + 1)}))
    cluster.run()
    keeper.on_experiment_end([])
    assert [r.state for r in trial_table(tmp_path).records()] == ["complete"] * 3
    copy = ScalingLawScheduler(background=False)
    again = JournalCallback(copy)
    again.set_state(json.loads(json.dumps(keeper.get_state())))
    again.open_journal(storage)
    assert json.dumps(copy.book.to_state()) == json.dumps(scheduler.book.to_state())


def test_the_command_line_reads_an_experiments_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(tmp_path, [(16.0, 3.0), (64.0, 2.0)])
    entry = SimpleNamespace(load=lambda: READER)
    monkeypatch.setattr("metaopt_hpo.trials.exports.entry_points", lambda group: [entry])
    for path in (tmp_path, tmp_path / JOURNAL):
        (record,) = TrialTable.read(path).records()
        assert (record.size, record.lr, record.engine) == (100, 0.01, "ray")
        assert record.curve is not None
        assert record.curve.loss == (3.0, 2.0)


def test_a_version_of_ray_that_is_built_differently_is_refused_at_wiring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("metaopt_hpo_ray._compat._USED", ((tune.Tuner, ("fit", "no_such_method")),))
    with pytest.raises(MetaOptError, match=r'no Tuner.no_such_method.*install "ray\[tune\]>=2.60,<2.61"'):
        tuner_configs(param_space=SPACE)


def test_the_supported_versions_are_those_of_the_distribution() -> None:
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    low, high = (".".join(map(str, v)) for v in SUPPORTED)
    assert f'ray = ["ray[tune]>={low},<{high}"]' in text


@pytest.mark.parametrize(
    ("options", "frequency", "keep", "failures"),
    [
        ({}, (0, None), 2, (2, False)),
        ({"checkpoint_frequency": 5, "checkpoint_at_end": True}, (5, True), 2, (2, False)),
        ({"fail_fast": True}, (0, None), 2, (0, True)),
        ({"max_failures": 7, "num_to_keep": None}, (0, None), None, (7, False)),
        (
            {"run_options": {"callbacks": None, "checkpoint_config": tune.CheckpointConfig(num_to_keep=3)}},
            (0, None), 3, (2, False),
        ),
        ({"run_options": {"failure_config": tune.FailureConfig(max_failures=-1)}}, (0, None), 2, (-1, False)),
    ],
)  # fmt: skip
def test_checkpoints_and_failures_are_configured_by_name_or_by_tunes_own_configs(
    options: dict[str, Any], frequency: tuple[int, Any], keep: int | None, failures: tuple[int, Any]
) -> None:
    run = tuner_configs(param_space=SPACE, **options)["run_config"]
    checkpoints = run.checkpoint_config
    assert (checkpoints.checkpoint_frequency, checkpoints.checkpoint_at_end) == frequency
    assert checkpoints.num_to_keep == keep
    assert (run.failure_config.max_failures, run.failure_config.fail_fast) == failures


def test_a_strategy_that_finds_its_lr_needs_none_and_small_ones_go_first() -> None:
    space = {k: v for k, v in SPACE.items() if k != "lr"}
    tuner_configs(param_space={**space, **strategy_space({"metaoptimize": {}})})
    with pytest.raises(ValueError, match="'lr'"):
        tuner_configs(param_space={**space, "strategy": "cosine"})
    scheduler = ScalingLawScheduler(background=False)
    JournalCallback(scheduler)
    cluster = StubCluster(scheduler, lambda t: [(64.0, 2.0)], slots=1)
    for size in (8e8, 4e6, 2e6, 1e6):
        cluster.add(
            stub_trial(f"{size:g}", **{**space, "size": size, "strategy": "metaoptimize", "lr": None})
        )
    cluster.run()
    assert cluster.started == ["1e+06", "2e+06", "4e+06", "8e+08"]
    assert all(r.self_tuning and r.lr > 0 for r in scheduler.book.records())
