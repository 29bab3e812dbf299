"""Exports that the tools themselves wrote (`exports/make.py`) are read as the runs that they hold."""

from __future__ import annotations

import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from metaopt_hpo.trials.readers import open_export, read_wandb
from metaopt_hpo.trials.schema import TableError, TableWarning
from metaopt_hpo.trials.table import TrialTable

sys.path.insert(0, str(Path(__file__).parent / "exports"))
from make import RUNS, loss, reports

HERE = Path(__file__).parent / "exports"
NEEDS = {"tensorboard": "tensorboard", "wandb": "wandb", "lightning": "yaml"}


def read(path: Path, columns: dict[str, Any] | None = None, **options: Any) -> TrialTable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TableWarning)
        return TrialTable.read(path, columns, **options)


@pytest.mark.parametrize("tool", ["tensorboard", "wandb", "mlflow", "ray"])
def test_a_folder_of_runs_gives_their_settings_ends_and_curves(tool: str) -> None:
    pytest.importorskip(NEEDS.get(tool, "pandas"))
    table = read(HERE / tool)
    records = {(r.size, r.lr): r for r in table.records()}
    assert len(records) == len(table) == len(RUNS)
    for i, run in enumerate(RUNS):
        record = records[run["size"], run["lr"]]
        short = i == 3 and tool != "tensorboard"
        told = reports(run)[: 2 if short else None]
        assert (record.batch, record.planned_tokens) == (run["batch"], run["tokens"])
        assert record.tokens == told[-1][1]
        assert record.loss == pytest.approx(told[-1][2], rel=1e-6)
        assert record.state == ({"ray": "pruned"}.get(tool, "failed") if short else "complete")
        assert record.curve is not None
        assert record.curve.tokens == tuple(t for _, t, _ in told)
        assert record.curve.loss == pytest.approx([v for *_, v in told], rel=1e-6)


def test_the_reader_is_chosen_by_what_lies_there() -> None:
    titles = {
        "ray": "Ray Tune experiment",
        "mlflow": "MLflow runs",
        "transformers": "Transformers Trainer logs",
        "optuna/trials.csv": "Optuna trials_dataframe",
    }
    assert {path: open_export(HERE / path).title for path in titles} == titles


def test_one_trial_of_ray_is_read_by_its_file() -> None:
    progress = sorted(HERE.glob("ray/**/progress.csv"))[0]
    for file in (progress, progress.with_name("result.json"), progress.parent):
        (record,) = read(file).records()
        assert record.loss == pytest.approx(loss({"size": record.size, "lr": record.lr}, 1.0))
        assert record.tokens == 20 * record.size


def test_results_of_ray_may_lack_metrics_or_be_damaged(tmp_path: Path) -> None:
    shutil.copytree(HERE / "ray", tmp_path / "ray")
    files = sorted((tmp_path / "ray").rglob("result.json"))
    lines = files[0].read_text().splitlines()
    lines[1] = lines[1].replace('"loss": ', '"loss": null, "old": ')
    files[0].write_text("\n".join([*lines, '{"loss": 1.2, "tok']))
    with (
        pytest.warns(TableWarning, match="1 damaged lines"),
        pytest.warns(TableWarning, match="reports of 4 runs"),
    ):
        table = TrialTable.read(tmp_path / "ray")
    first = next(r for r in table.records() if r.trial.endswith("00000"))
    assert first.curve is not None
    assert len(first.curve.loss) == 3
    files[1].with_name("error.txt").write_text("RuntimeError")
    states = [r.state for r in read(tmp_path / "ray").records()]
    assert states.count("failed") == 1


def test_lightning_gives_hyperparameters_and_evaluations() -> None:
    pytest.importorskip("yaml")
    table = read(HERE / "lightning")
    assert [(r.size, r.lr, r.tokens) for r in table.records()] == [
        (run["size"], run["lr"], 65536 * 16) for run in RUNS
    ]
    assert all(r.curve is not None and len(r.curve.tokens) == 2 for r in table.records())


def test_a_trainers_log_asks_for_size_and_batch_and_takes_the_evaluations(tmp_path: Path) -> None:
    with pytest.raises(
        TableError, match=r"columns 'size' \(parameters\) and 'batch' \(tokens per step\) are missing"
    ):
        TrialTable.read(HERE / "transformers")
    given = {"size": 1e3, "batch": 64.0}
    table = read(HERE / "transformers", given)
    assert [r.tokens for r in table.records()] == [512, 512]
    assert all(r.curve is not None and len(r.curve.loss) == 4 for r in table.records())
    # the last checkpoint of a run tells the whole story
    shutil.copytree(HERE / "transformers", tmp_path / "t")
    shutil.copytree(tmp_path / "t/run0/checkpoint-8", tmp_path / "t/run0/checkpoint-4")
    assert len(read(tmp_path / "t", given)) == 2


def test_the_pickle_beside_a_trainers_log_is_not_opened(tmp_path: Path) -> None:
    shutil.copytree(HERE / "transformers/run0", tmp_path / "run0")
    (tmp_path / "run0/checkpoint-8/training_args.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    assert len(read(tmp_path / "run0", {"size": 1e3, "batch": 64.0})) == 1


def test_an_optuna_data_frame_needs_no_names() -> None:
    table = read(HERE / "optuna/trials.csv")
    assert [r.state for r in table.records()] == ["complete"] * 4 + ["pruned", "failed"]
    assert [(r.size, r.batch, r.lr) for r in table.records()[:4]] == [
        (run["size"], run["batch"], run["lr"]) for run in RUNS
    ]


def test_a_cut_off_wandb_file_gives_what_it_holds(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    source = next((HERE / "wandb").rglob("*run0/*.wandb"))
    file = tmp_path / source.name
    file.write_bytes(source.read_bytes()[:-400])
    with pytest.warns(TableWarning, match="damaged or cut off"), pytest.warns(TableWarning, match="reports"):
        (record,) = TrialTable.read(file).records()
    assert record.state == "failed"  # its exit was never written
    file.write_bytes(b"something else")
    with pytest.raises(TableError, match="no file of W&B's"):
        TrialTable.read(file)


@pytest.mark.slow
def test_a_database_of_mlflow(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    client = mlflow.tracking.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("sweep", artifact_location=str(tmp_path))
    for run in RUNS:
        key = client.create_run(experiment).info.run_id
        for name, value in run.items():
            client.log_param(key, name, value)
        for step, seen, value in reports(run):
            client.log_metric(key, "loss", value, step=step)
            client.log_metric(key, "tokens_seen", seen, step=step)
        client.set_terminated(key)
    table = read(tmp_path / "mlflow.db")
    assert sorted((r.size, r.lr) for r in table.records()) == sorted((r["size"], r["lr"]) for r in RUNS)
    assert {r.state for r in table.records()} == {"complete"}


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    with pytest.raises(TableError, match=r"pip install 'metaopt-hpo\[tensorboard\]'"):
        TrialTable.read(HERE / "tensorboard")


def test_what_nobody_knows_is_said(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="holds nothing that a reader knows"):
        TrialTable.read(tmp_path)
    with pytest.raises(TableError, match="no table at"):
        TrialTable.read(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="did you mean 'wandb'"):
        TrialTable.read(tmp_path, format="wanbd")


@pytest.mark.parametrize("dump", ["json", "repr", "repr_with_nan"])
def test_the_csv_of_dicts_that_wandbs_guide_writes(tmp_path: Path, dump: str) -> None:
    import json

    import pandas as pd

    show = json.dumps if dump == "json" else repr
    summaries = [
        {"loss": 3.0, "tokens": 2e7, "_step": 9, "x": float("nan") if dump == "repr_with_nan" else 1}
    ] * 2
    configs = [{"size": 1e6, "batch": 65536, "optimizer": {"lr": lr}} for lr in (1e-3, 1e-2)]
    frame = pd.DataFrame({"summary": map(show, summaries), "config": map(show, configs), "name": ["a", "b"]})
    frame.to_csv(tmp_path / "project.csv")
    table = read_wandb(tmp_path / "project.csv", {})
    assert [(r.size, r.lr, r.tokens, r.loss) for r in table.records()] == [
        (1e6, lr, 2e7, 3.0) for lr in (1e-3, 1e-2)
    ]
    frame.assign(config=["{", "}"]).to_csv(tmp_path / "broken.csv")
    with pytest.raises(TableError, match="row 0 of column 'config'"):
        TrialTable.read(tmp_path / "broken.csv")
