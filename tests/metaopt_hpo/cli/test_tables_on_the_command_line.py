"""From an export to a law: inspect, then paste; numbers and errors in the command line's own words."""

from __future__ import annotations

import shlex
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from metaopt_hpo.cli.app import app
from metaopt_hpo.cli.app import main as program
from metaopt_hpo.cli.reading import pairs
from metaopt_hpo.cli.words import command_line
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling import Law

SIZES = (1e6, 4e6, 16e6, 64e6)


def run(*args: str) -> tuple[int, str, str]:
    """Exit code and what was said, as a shell sees them."""
    out = CliRunner().invoke(app, list(args))
    if isinstance(out.exception, SystemExit) or out.exception is None:
        return out.exit_code, out.stdout, out.stderr
    return -1, out.stdout, str(out.exception)


def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    """Exit code and error of the whole program."""
    monkeypatch.setattr(sys, "argv", ["metaopt-hpo", *args])
    with pytest.raises(SystemExit) as end:
        program()
    return int(str(end.value.code or 0)), capsys.readouterr().err


def sweep() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "n_params": n,
                "train_tokens": 20 * n,
                "batch_size": 32,
                "seq_len": 2048,
                "learning_rate": lr,
                "val_loss": 1.7 + 300 * n**-0.35 + 0.03 * np.log(lr / (0.8 * n**-0.3)) ** 2,
            }
            for n in SIZES
            for lr in np.geomspace(5e-4, 5e-2, 7)
        ]
    )


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("  metaopt-hpo")]


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f,
        lambda f: f.rename(columns={"n_params": "params_m"}).assign(params_m=f["n_params"] / 1e6),
        lambda f: f.rename(columns={"train_tokens": "tokens_b"}).assign(tokens_b=f["train_tokens"] / 1e9),
        lambda f: f.rename(
            columns={"n_params": "N", "train_tokens": "D", "batch_size": "bsz", "learning_rate": "lr"}
        ),
    ],
)
def test_inspect_then_paste(change: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    change(sweep()).to_csv("runs.csv", index=False)  # type: ignore[operator]
    code, said, _ = run("inspect", "runs.csv")
    assert code == 1
    assert "missing" in said
    (again,) = commands(said)
    assert again[0] == "inspect"
    code, said, _ = run(*again)
    assert code == 0, said
    assert "28 runs (28 complete), 4 sizes: 1M, 4M, 16M, 64M" in said
    (fit,) = commands(said)
    code, _, error = run(*fit)
    assert code == 0, error
    law = Law.from_json(tmp_path / "law.json")
    assert law.predict(64e6, 20 * 64e6).lr.value == pytest.approx(0.8 * 64e6**-0.3, rel=0.1)


def test_all_that_is_missing_is_named_in_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    sweep().drop(columns=["n_params", "learning_rate"]).to_csv(path, index=False)
    code, said = main(monkeypatch, capsys, "fit", str(path))
    assert code == 1
    assert "'size' (parameters), 'batch' (tokens per step) and 'lr' are missing" in said
    assert "--map batch=batch_size" in said
    assert "--unit batch=sequences with --sequence-length N" in said
    assert "{" not in said
    assert "(-)" not in said
    code, said = main(monkeypatch, capsys, "fit", str(path), "--map", "lr=val_los,size=train_token")
    assert "--map lr=val_loss" in said
    assert "--map" in said
    code, said = main(monkeypatch, capsys, "fit", str(path), "--map", "siez=val_loss")
    assert "did you mean 'size'?" in said


def test_pairs_may_be_given_together() -> None:
    assert pairs("--map", ["size=N,batch=65536", "lr=a,b"]) == {"size": "N", "batch": 65536.0, "lr": "a,b"}
    with pytest.raises(MetaOptError, match="OURS=THEIRS"):
        pairs("--map", ["size"])
    with pytest.raises(MetaOptError, match="twice"):
        pairs("--map", ["size=a,size=b"])


@pytest.mark.parametrize(
    ("argument", "option"),
    [
        ("name it with columns={'size': …}", "name it with --map size=COLUMN"),
        ("did you mean columns={'a': 'x'}, columns={'b': 'y'}?", "did you mean --map a=x,b=y?"),
        ("columns={'loss': 'val loss'}", "--map 'loss=val loss'"),
        ("pass units={'size': 'millions'}", "pass --unit size=millions"),
        ("units={'batch': 1} where", "--unit batch=1 where"),
        (
            "units={'batch': 'sequences'} with sequence_length=…",
            "--unit batch=sequences with --sequence-length N",
        ),
        ("pass take_finished=True", "pass --take-finished"),
        ("pass decimal='comma' or decimal='point'", "pass --decimal comma or --decimal point"),
        ("pass implausible='warn'", "pass --allow-implausible"),
        ("left out (use='fixed')", "left out (--use fixed)"),
        ("(extra=('schedule',) makes it a coordinate)", "(--extra schedule makes it a coordinate)"),
        (
            "give all in one (units=… when reading the table)",
            "give all in one (--unit when reading the table)",
        ),
        ("nothing of ours", "nothing of ours"),
    ],
)
def test_messages_speak_of_options(argument: str, option: str) -> None:
    assert command_line(argument) == option


@pytest.fixture
def law(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    sweep().to_csv(path, index=False)
    code, _, error = run("fit", str(path), "--map", "batch=65536", "--out", str(tmp_path / "law.json"))
    assert code == 0, error
    return tmp_path / "law.json"


def test_numbers_are_taken_as_people_write_them_and_said_with_units(law: Path) -> None:
    wanted = Law.from_json(law).predict(size=3e8, tokens=6e9)
    for size, tokens in (("300M", "6B"), ("0.3b", "6_000_000_000"), ("3e8", "6e9")):
        code, said, _ = run(
            "predict", str(law), "--size", size, "--tokens", tokens, "--sequence-length", "2048"
        )
        assert code == 0
        assert f"{wanted.lr.value:.4g}" in said
        assert "for 300M parameters and 6B tokens" in said
        assert "tokens per step (32 sequences)" in said
        assert "nats per token" in said
    for wrong in ("3x", "-3", "many", "1,000", "0"):
        code, _, error = run("predict", str(law), "--size", wrong, "--tokens", "6B")
        assert code == 2
        assert "3B" in error


def test_what_lies_absurdly_far_outside_is_refused_unless_forced(
    law: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = main(monkeypatch, capsys, "predict", str(law), "--size", "300M", "--tokens", "60")
    assert code == 3
    assert "below the fitted range (20M to 1.28B)" in said
    assert "--force" in said
    assert run("predict", str(law), "--size", "300M", "--tokens", "60", "--force")[0] == 0
    assert run("laws", "step-law", "--size", "7B", "--tokens", "1.4T")[0] == 0


def test_too_little_for_a_law_has_a_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    sweep().query("n_params < 2e6").to_csv(path, index=False)
    code, said = main(monkeypatch, capsys, "fit", str(path), "--map", "batch=65536")
    assert code == 3
    assert "allow_weak" not in said


def test_a_size_is_held_out_by_its_usual_name(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    frame = sweep()
    frame["n_params"] = frame["n_params"].replace(64e6, 63.7e6)
    frame.to_csv(path, index=False)
    code, said, error = run("fit", str(path), "--map", "batch=65536", "--hold-out", "64M")
    assert code == 0, error
    assert "6.37e+07" in said
    code, _, error = run("fit", str(path), "--map", "batch=65536", "--hold-out", "3B")
    assert "sizes are 1M to 63.7M" in error


def test_implausible_numbers_are_refused_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    frame = sweep()
    frame.assign(train_tokens=frame["train_tokens"] / 1e9).to_csv(path, index=False)
    assert "units={'tokens': 'billions'}" in run("fit", str(path), "--map", "batch=65536")[2]
    assert run("fit", str(path), "--map", "batch=65536", "--unit", "tokens=billions")[0] == 0
    assert run("fit", str(path), "--map", "batch=65536", "--allow-implausible", "--allow-weak")[0] == 0


def test_completion_can_be_installed_and_exit_codes_are_listed() -> None:
    _, said, _ = run("--help")
    assert "--install-completion" in said
    assert "Exit codes" in said


def test_an_experiments_folder_is_inspected_and_reported(tmp_path: Path) -> None:
    """Lightning-like logs of a sweep, four sizes."""
    pytest.importorskip("yaml")
    for i, row in enumerate(sweep().to_dict("records")):
        folder = tmp_path / "logs" / f"version_{i}"
        folder.mkdir(parents=True)
        settings = {
            "size": row["n_params"],
            "batch": 65536,
            "lr": row["learning_rate"],
            "tokens": row["train_tokens"],
        }
        (folder / "hparams.yaml").write_text("".join(f"{k}: {v!r}\n" for k, v in settings.items()))
        pd.DataFrame(
            {
                "step": [1, 2],
                "tokens_seen": [row["train_tokens"] / 2, row["train_tokens"]],
                "val_loss": [5, row["val_loss"]],
            }
        ).to_csv(folder / "metrics.csv", index=False)
    code, said, _ = run("inspect", str(tmp_path / "logs"))
    assert code == 0
    assert "Lightning CSV logs" in said
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code, said, error = run("report", str(tmp_path / "logs"))
    assert code == 0, error
    assert (tmp_path / "logs" / "law.html").is_file()


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_a_table_in_the_place_of_a_law_is_named_with_the_command_that_fits_it(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"runs.{kind}"
    if kind == "json":
        sweep().to_json(path, orient="records")
    else:
        getattr(sweep(), f"to_{kind}")(path, index=False)
    code, _, error = run("predict", str(path), "--size", "1B", "--tokens", "20B")
    assert code != 0
    assert f"{str(path)!r} is not a law" in error
    assert f"metaopt-hpo fit {path}" in error


def test_a_damaged_law_is_not_taken_for_a_table(tmp_path: Path) -> None:
    path = tmp_path / "law.json"
    path.write_text('{"format": "metaopt-hpo law", "version": 2}')
    code, _, error = run("predict", str(path), "--size", "1B", "--tokens", "20B")
    assert code != 0
    assert "malformed" in error
    assert "metaopt-hpo fit" not in error
