"""Weights & Biases exports become tables with states, units, hyperparameters and curves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metaopt_hpo.trials.readers import read_wandb
from metaopt_hpo.trials.schema import TableError, TableWarning

COLUMNS: dict[str, str | float] = {
    "size": "model.params",
    "tokens": "tokens",
    "batch": "global_batch",
    "lr": "optim.lr",
    "loss": "eval/loss",
}


def _run(i: int, **over: object) -> dict[str, object]:
    run: dict[str, object] = {
        "id": f"run{i}",
        "state": "finished",
        "config": {
            "model": {"value": {"params": 1e8}},
            "global_batch": {"value": 256, "desc": None},
            "optim": {"value": {"lr": 1e-3 * (i + 1), "wd": 0.1}},
            "_wandb": {"value": {}},
        },
        "summary": {"tokens": 1e10, "eval/loss": 2.5 + 0.1 * i, "gpu": 3},
        "history": [{"tokens": 5e9, "eval/loss": 3.0}, {"tokens": 1e10, "eval/loss": 2.5}, {"step": 3}],
    }
    return run | over


def test_json_of_runs(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    runs = [
        _run(0),
        _run(1, state="killed", summary={"tokens": 4e9, "eval/loss": 3.1}, history=[]),
        _run(2, state="crashed", summary={}),
    ]
    path.write_text(json.dumps(runs))
    with (
        pytest.warns(TableWarning, match="rows are reports of 3 runs"),
        pytest.warns(TableWarning, match="take_finished=True"),
    ):
        table = read_wandb(
            path,
            COLUMNS,
            units={"batch": "sequences"},
            sequence_length=2048,
            history={"tokens": "tokens", "loss": "eval/loss"},
        )
    a, b, c = table.records()
    assert (a.trial, a.state, a.size, a.batch, a.lr, a.loss) == (
        "run0",
        "complete",
        1e8,
        256 * 2048,
        1e-3,
        2.5,
    )
    assert a.params == {"optim.wd": 0.1}
    assert a.curve is not None
    assert a.curve.tokens == (5e9, 1e10)
    assert (b.state, b.tokens) == ("pruned", 4e9)
    assert (c.state, c.tokens, c.loss) == ("failed", 1e10, 2.5)  # what its history says
    lines = tmp_path / "runs.jsonl"
    lines.write_text("\n".join(json.dumps(r) for r in runs))
    with pytest.warns(TableWarning):
        assert len(read_wandb(lines, COLUMNS, units={"batch": 2048.0})) == 3
    with pytest.raises(TableError, match="sequences"):
        read_wandb(lines, COLUMNS)


def test_csv_of_the_runs_table(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(
        "Name,ID,State,Runtime,params,tokens,batch,lr,val,wd\n"
        "a,x1,finished,12,1e8,1e10,5e5,0.001,2.5,0.1\n"
        "b,x2,crashed,3,1e8,,5e5,0.002,,0.1\n"
    )
    table = read_wandb(path, {"size": "params", "loss": "val"})
    a, b = table.records()
    assert (a.trial, a.state, a.seconds, a.engine) == ("x1", "complete", 12.0, "wandb")
    assert a.params == {"Name": "a", "wd": 0.1}
    assert (b.state, b.tokens) == ("failed", 0.0)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    path.write_text(json.dumps([_run(0)]))
    with pytest.raises(
        TableError, match=r"'nope' \(for 'lr'\) is missing; did you mean columns=\{'lr': 'config.optim.lr'\}"
    ):
        read_wandb(path, COLUMNS | {"lr": "nope"})
    path.write_text("{broken")
    with pytest.raises(TableError, match="as JSON"):
        read_wandb(path, COLUMNS)
    path.write_text("[1, 2]")
    with pytest.raises(TableError, match="list of runs"):
        read_wandb(path, COLUMNS)
    path.write_text(json.dumps([_run(0, state="odd")]))
    with pytest.raises(TableError, match="holds the state 'odd', which is unknown"):
        read_wandb(path, COLUMNS)
    with pytest.raises(TableError, match="no export"):
        read_wandb(tmp_path / "none.json", COLUMNS)
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(TableError, match="a W&B export is"):
        read_wandb(tmp_path / "x.txt", COLUMNS)
