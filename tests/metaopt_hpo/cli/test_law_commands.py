"""The commands fit, laws and replay: what they print is what the library and the replay say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from metaopt_hpo.cli import fitting, laws
from metaopt_hpo.cli.replay import replay
from metaopt_hpo.comparison.held_out import predicted_and_found
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling import Law, fit, library
from metaopt_hpo.trials.table import TrialTable

app = typer.Typer()
app.command()(fitting.fit)
app.command()(laws.laws)
app.command()(laws.predict)
app.command()(replay)
runner = CliRunner()


def test_all_laws_are_listed() -> None:
    result = runner.invoke(app, ["laws"])
    assert result.exit_code == 0
    for name in library.names():
        assert name in result.output


@pytest.mark.parametrize("name", library.names())
def test_each_law_shows_its_origin(name: str) -> None:
    result = runner.invoke(app, ["laws", name])
    assert result.exit_code == 0, result.output
    assert library.load(name).source in result.output


def test_predictions_and_export(tmp_path: Path) -> None:
    result = runner.invoke(app, ["laws", "step-law", "--size", "1e9", "--tokens", "1e11"])
    assert f"lr    {1.79 * 1e9**-0.713 * 1e11**0.307:.4g}" in result.output
    result = runner.invoke(
        app, ["laws", "mup-adam", "--size", "4e9", "--tokens", "1e11", "--anchor", "1B,100B,0.01"]
    )
    assert "lr    0.005" in result.output
    path = tmp_path / "law.json"
    assert runner.invoke(app, ["laws", "fitted-step-law", "--out", str(path)]).exit_code == 0
    assert Law.from_json(path).trials == 1968


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["laws", "nope"], "no law 'nope'"),
        (["laws", "step-law", "--size", "1e9"], "both"),
        (["laws", "step-law", "--out", "x.json"], "published formula"),
        (["laws", "mup-adam", "--size", "1e9", "--tokens", "1e9", "--anchor", "1,2"], "SIZE,TOKENS,LR"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], message: str) -> None:
    result = runner.invoke(app, arguments)
    assert isinstance(result.exception, MetaOptError)
    assert message in str(result.exception)


def test_replay_of_a_file(tmp_path: Path) -> None:
    rows = [
        {
            "N": n,
            "tokens": 20 * n,
            "bsz": b,
            "lr": lr,
            "loss": 2 + math.log(lr / 1e-3) ** 2 / 10 + math.log(b / 256) ** 2 / 10,
        }
        for n in (1e7, 3e7, 1e8)
        for lr in (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
        for b in (64, 128, 256, 512, 1024)
    ]
    path = tmp_path / "t.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    base = [
        "replay",
        str(path),
        "--tokens",
        "2e9",
        "--map",
        "size=N",
        "--map",
        "batch=bsz",
        "--unit",
        "batch=1",
        "--methods",
        "random,grid",
    ]
    page = tmp_path / "p.html"
    result = runner.invoke(app, [*base, "--size", "1e8", "--seeds", "2", "--page", str(page)])
    assert result.exit_code == 0, result.output
    assert "a grid search costs 25 target runs" in result.output
    assert page.exists()
    far = runner.invoke(app, [*base, "--size", "5e8"])
    assert "no cell near" in str(far.exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "1e6", "--methods", ","], "at least one search method"),
        (["--size", "1e6", "--limit", "nan"], "limit must be a positive number"),
    ],
)
def test_a_replay_that_cannot_be_is_refused(planted: Path, options: list[str], message: str) -> None:
    result = runner.invoke(app, ["replay", str(planted), "--map", "size=params", "--tokens", "2e7", *options])
    assert isinstance(result.exception, (MetaOptError, ValueError))
    assert message in str(result.exception)


def test_losses_that_are_not_positive_are_not_replayed(planted: Path) -> None:
    frame = pd.read_csv(planted)
    frame.assign(loss=-frame["loss"]).to_csv(planted, index=False)
    args = ["replay", str(planted), "--map", "size=params", "--size", "1e6", "--tokens", "2e7"]
    result = runner.invoke(app, args)
    assert "15 trials have a loss that is not positive" in str(result.exception)


def test_what_was_mended_in_a_table_is_said_in_a_line_each(planted: Path) -> None:
    frame = pd.read_csv(planted)
    pd.concat([frame, frame.head(2)]).to_csv(planted, index=False)
    result = runner.invoke(app, ["fit", str(planted), "--map", "size=params"])
    assert "warning [duplicates] 2 rows repeat another row exactly and were left out" in result.output
    assert ".py" not in result.output


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    rows = [
        {
            "params": n,
            "tokens": 20 * n,
            "batch": 2**16,
            "lr": lr,
            "loss": 2 * n**-0.05 * math.exp(0.03 * math.log(lr * n**0.3) ** 2),
        }
        for n in (1e6, 4e6, 16e6)
        for lr in (n**-0.3 * math.exp(x) for x in (-2, -1, 0, 1, 2))
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def test_fit_recovers_a_planted_law_and_writes_it_with_its_page(planted: Path) -> None:
    out, page = planted.with_name("law.json"), planted.with_name("law.html")
    args = ["fit", str(planted), "--map", "size=params", "--out", str(out), "--page", str(page)]
    result = runner.invoke(app, args)
    assert result.exit_code == 0, result.output
    law = Law.from_json(out)
    assert law.predict(size=64e6, tokens=20 * 64e6).lr.value == pytest.approx(64e6**-0.3, rel=0.1)
    text = page.read_text(encoding="utf-8")
    assert "Where the optimal learning rate moves with size" in text
    assert "Where the optimal batch moves" not in text  # one batch: no law of it


def test_fit_leans_on_a_prior_by_name_or_file_and_refuses_an_unknown_use(planted: Path) -> None:
    two_sizes = pd.read_csv(planted).query("params < 1e7")
    two_sizes.to_csv(planted, index=False)
    args = ["fit", str(planted), "--map", "size=params"]
    assert runner.invoke(app, args).exit_code != 0
    assert runner.invoke(app, [*args, "--prior", "fitted-step-law"]).exit_code == 0
    wrong = runner.invoke(app, [*args, "--use", "best"])
    assert isinstance(wrong.exception, MetaOptError)


def test_a_law_of_the_batch_takes_an_anchor_and_asks_for_one() -> None:
    args = ["laws", "power-lines", "--size", "1e9", "--tokens", "1e11"]
    assert "anchor=(size, tokens, batch)" in str(runner.invoke(app, args).exception)
    result = runner.invoke(app, [*args, "--anchor", "1e9,1e10,1e6"])
    assert f"batch {1e6 * 10**0.383:.4g}" in result.output


def test_a_wandb_export_is_read_with_its_states_and_curves(planted: Path) -> None:
    rows = pd.read_csv(planted).to_dict("records")
    runs = [
        {
            "id": f"r{i}",
            "state": "crashed" if i == 4 else "finished",
            "config": {"model": {"value": {"params": r["params"]}}, "lr": r["lr"], "batch": r["batch"]},
            "summary": {"tokens": r["tokens"], "val/loss": r["loss"]},
            "history": [
                {"tokens": r["tokens"] * part, "val/loss": r["loss"] * part**-0.1} for part in (0.25, 0.5)
            ],
        }
        for i, r in enumerate(rows)
    ]
    path = planted.with_suffix(".json")
    path.write_text(json.dumps(runs), encoding="utf-8")
    args = ["fit", str(path), "--wandb", "--map", "size=model.params", "--map", "loss=val/loss"]
    result = runner.invoke(app, args)
    assert result.exit_code == 0, result.output
    assert "law from 14 trials" in result.output
    assert "1 failed trials were left out" in result.output
    assert "the curves of 14 finished runs" in result.output


def test_a_further_coordinate_is_asked_for_by_name(planted: Path) -> None:
    frame = pd.read_csv(planted)
    decays = [frame.assign(weight_decay=w, lr=frame["lr"] * (w / 0.1) ** -0.5) for w in (0.1, 0.4)]
    pd.concat(decays).to_csv(planted, index=False)
    out = planted.with_name("law.json")
    unnamed = runner.invoke(app, ["fit", str(planted), "--map", "size=params"])
    assert "(--extra weight_decay makes it one)" in unnamed.output
    fitted = runner.invoke(
        app, ["fit", str(planted), "--map", "size=params", "--extra", "weight_decay", "--out", str(out)]
    )
    assert fitted.exit_code == 0, fitted.output
    ask = ["predict", str(out), "--size", "6.4e7", "--tokens", "1.28e9", "--extra"]
    law = Law.from_json(out)
    for decay in (0.1, 0.4):
        wanted = law.predict(6.4e7, 1.28e9, extra={"weight_decay": decay}).lr.value
        assert f"lr     {wanted:.4g} " in runner.invoke(app, [*ask, f"weight_decay={decay}"]).output
    assert "takes NAME=NUMBER" in str(runner.invoke(app, [*ask, "weight_decay=much"]).exception)
    assert "no coordinate of this law" in str(runner.invoke(app, [*ask, "beta2=0.9"]).exception)


def test_sizes_held_out_are_predicted(planted: Path) -> None:
    more = pd.read_csv(planted)
    larger = more.query("params > 1e7").assign(params=64e6, tokens=20 * 64e6)
    larger["lr"], larger["loss"] = larger["lr"] * 4**-0.3, larger["loss"] * 4**-0.05
    pd.concat([more, larger]).to_csv(planted, index=False)
    page = planted.with_name("law.html")
    args = ["fit", str(planted), "--map", "size=params"]
    result = runner.invoke(app, [*args, "--hold-out", "64e6", "--page", str(page)])
    assert result.exit_code == 0, result.output
    table = TrialTable.read(planted, columns={"size": "params"})
    law = fit(table.select(where=table.frame["size"] < 64e6))
    assert predicted_and_found(law, table.select(size=64e6)) in result.output
    (cell, total) = predicted_and_found(law, table.select(size=64e6)).splitlines()[1:]
    assert float(cell.split()[3]) == pytest.approx(64e6**-0.3, rel=0.01)
    assert 0.0 <= float(total.split()[2]) < 0.2
    assert "Calibration on the sizes held out" in page.read_text(encoding="utf-8")
    for size in ("1e6", "1e9"):
        result = runner.invoke(app, [*args, "--hold-out", size])
        assert isinstance(result.exception, MetaOptError)
        assert "leaves no trial" in str(result.exception)


@pytest.mark.parametrize("option", ["--base", "--prior"])
def test_a_file_that_is_not_there_is_no_law_of_the_library(planted: Path, option: str) -> None:
    result = runner.invoke(app, ["fit", str(planted), "--map", "size=params", option, "gone.csv"])
    assert f"{option} gone.csv: there is no such file" in str(result.exception)
    assert "fitted-step-law" in str(result.exception)
