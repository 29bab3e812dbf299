"""A prediction written down before the run: what the file holds, that it is never replaced, and how it is scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from metaopt_hpo.cli import app
from metaopt_hpo.cli.laws import OutOfRange
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling import Law, fit
from metaopt_hpo.scaling.preregistration import read, register
from metaopt_hpo.trials.table import TrialTable

AT = {"size": 1e9, "tokens": 1e11}


@pytest.fixture
def law(make_table: Callable[..., TrialTable]) -> Law:
    return fit(make_table(), draws=20)


def test_the_file_gives_back_what_was_predicted(law: Law, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    made = register(law, **AT, path=path)
    assert read(path) == made
    p = law.predict(**AT)
    assert (made.loss.value, made.loss.low, made.loss.high) == (p.loss.value, p.loss.low, p.loss.high)
    assert made.largest == (3e8, 3e10)
    assert made.warnings == tuple(w.code for w in p.warnings)


def test_it_is_never_replaced(law: Law, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    register(law, **AT, path=path)
    before = path.read_bytes()
    with pytest.raises(MetaOptError, match="never replaced"):
        register(law, size=2e9, tokens=1e11, path=path)
    assert path.read_bytes() == before


def test_a_score_says_error_and_interval(law: Law) -> None:
    made = register(law, **AT)
    exact = made.score(made.loss.value)
    assert exact.error == 0.0
    assert exact.inside
    assert not made.score(0.99 * made.loss.low).inside
    assert made.score(made.loss.value / 1.01).error == pytest.approx(0.01)
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="loss must be"):
            made.score(bad)


@pytest.mark.parametrize("change", [{"lr": 3.0}, {"made": 1}, {"tokens": -1.0}, {"level": 2.0}, {"extra": 1}])
def test_damaged_files_are_one_sentence(law: Law, tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "p.json"
    register(law, **AT, path=path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(MetaOptError, match="no registered prediction"):
        read(path)
    with pytest.raises(MetaOptError, match="cannot read"):
        read(tmp_path / "missing.json")


def test_the_commands(law: Law, tmp_path: Path) -> None:
    law.to_json(tmp_path / "law.json")
    run = CliRunner()
    out = str(tmp_path / "p.json")
    made = run.invoke(
        app, ["register", str(tmp_path / "law.json"), "--size", "1e9", "--tokens", "1e11", "--out", out]
    )
    assert made.exit_code == 0, made.output
    scored = run.invoke(app, ["check", out, "--loss", "1.9"])
    assert scored.exit_code == 0
    assert "interval" in scored.output


def test_the_command_takes_numbers_as_people_write_them_and_says_the_warnings(
    law: Law, tmp_path: Path
) -> None:
    law.to_json(tmp_path / "law.json")
    out = tmp_path / "p.json"
    sizes = ["--size", "1B", "--tokens", "100B", "--batch", "512k", "--out", str(out)]
    made = CliRunner().invoke(app, ["register", str(tmp_path / "law.json"), *sizes])
    assert made.exit_code == 0, made.output
    written = read(out)
    assert (written.size, written.tokens) == (1e9, 1e11)
    for warning in law.predict(**AT, batch=512e3).warnings:
        assert f"warning [{warning.code}] " in made.stderr


def test_the_command_refuses_what_lies_absurdly_far_out(law: Law, tmp_path: Path) -> None:
    law.to_json(tmp_path / "law.json")
    out = tmp_path / "p.json"
    command = [
        "register",
        str(tmp_path / "law.json"),
        "--size",
        "1e17",
        "--tokens",
        "1e11",
        "--out",
        str(out),
    ]
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, OutOfRange)
    assert not out.exists()
    forced = CliRunner().invoke(app, [*command, "--force"])
    assert forced.exit_code == 0, forced.output
    assert forced.stderr.count("warning [") == len(read(out).warnings) > 0
