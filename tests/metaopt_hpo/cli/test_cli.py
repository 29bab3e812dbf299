"""The command line as a user meets it: help, errors in one sentence, exit codes, a whole small comparison."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from metaopt_hpo import cli
from metaopt_hpo.comparison.results import Comparison

TINY = ["--widths", "8,16,24,32", "--steps", "16", "--seeds", "1", "--runs", "2", "--pilot-runs", "3"]
PILOTS_TINY = ["--widths", "8,16,24,64", "--steps", "16", "--seeds", "1", "--runs", "3", "--pilot-runs", "3"]


def run(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "metaopt_hpo.cli", *args], capture_output=True, text=True, env=env, **options
    )


def test_help_of_every_command_shows_an_example() -> None:
    runner = CliRunner()
    assert runner.invoke(cli.app, ["--help"]).exit_code == 0
    for command in cli.app.registered_commands:
        name = command.name or command.callback.__name__.replace("_", "-")  # type: ignore[union-attr]
        shown = runner.invoke(cli.app, [name, "--help"])
        assert shown.exit_code == 0, name


def test_help_names_every_workload() -> None:
    from metaopt_hpo.workloads import available_workloads

    shown = CliRunner().invoke(cli.app, ["compare", "--help"], env={"COLUMNS": "200"}).stdout
    assert all(name in shown for name in available_workloads())


def test_help_and_the_lazy_face_import_nothing_heavy() -> None:
    code = (
        "import sys; from metaopt_hpo import cli; import metaopt_hpo;"
        "heavy = {'torch', 'pandas', 'scipy', 'optuna', 'plotly', 'ray'} & set(sys.modules); assert not heavy, heavy;"
        "from metaopt_hpo import fit, TrialTable; assert not {'torch', 'optuna', 'plotly'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""
    code = (
        "import sys; from metaopt_hpo import MetaOptimize;"
        "assert not {'pandas', 'optuna', 'plotly'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def test_every_public_name_is_there_and_none_is_hidden_by_a_submodule() -> None:
    import importlib.util

    import metaopt_hpo

    for name in metaopt_hpo.__all__:
        assert getattr(metaopt_hpo, name) is not None
        # `plan` is a room and a function: the room is called
        assert importlib.util.find_spec(f"metaopt_hpo.{name}") is None or callable(getattr(metaopt_hpo, name))
    with pytest.raises(AttributeError, match="no attribute 'MetaOptimise'"):
        _ = metaopt_hpo.MetaOptimise  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["compare", "image-lm"], "unknown workload 'image-lm'"),
        (["compare", "text-lm", "--lr", "1e-1:1e-3"], "LOW < HIGH"),
        (["compare", "text-lm", "--lr", "fast"], "LOW:HIGH"),
        (["compare", "text-lm", "--widths", "16,x"], "--widths"),
        (["compare", "text-lm", "--widths", "32,16"], "ascending"),
        (["compare", "text-lm", "--methods", "magic"], "unknown method 'magic'"),
        (["compare", "text-lm", "--engine", "nevergrad"], "no engine 'nevergrad'"),
        (["compare", "text-lm", "--strategy", "magic", "--methods", "grid", "--widths", "8"], "magic"),
        (["compare", "text-lm", "--widths", "16,32"], "three pilot sizes"),
        (["compare", "text-lm", "--device", "warp"], "cannot train on device 'warp'"),
        (["verify-rule", "lr is nice"], "exactly one of ~"),
        (["verify-rule", "lr ~ D^-0.3", "--kind", "power-law"], "needs source"),
        (["verify-rule", "lr ~ D^-0.5, a = 1.5"], "(0, 1]"),
        (["verify-rule", "lr ~ D^-0.5, B ~ D^1.2"], "leaves 1 <= B <= D"),
        (["verify-rule", "lr ~ D^-0.5", "--path", "B = 2 D"], "leaves 1 <= B <= D"),
        (["verify-rule", "lr ~ n^-1"], "give a path such as 'L ~ n^2'"),
        (["verify-rule", "lr ~ D^-0.5", "--page", "."], "cannot write .: it is a folder"),
        (["attribute", "--tier", "3"], "engine"),
        (["attribute", "--tier", "0", "--engine", "optuna"], "no other tier does"),
        (["attribute", "--tier", "3", "--engine", "nevergrad"], "no engine 'nevergrad'"),
        (["attribute", "--device", "warp"], "cannot compute on device 'warp'"),
        (["attribute", "--out", "table.csv"], "out must be a folder that can be written, got 'table.csv'"),
        (["report", "nowhere"], "no finished comparison"),
        (["fit", "nowhere.csv"], "nowhere.csv"),
        (["fit", "table.csv"], "size"),
        (["fit", "table.csv", "--map", "batch"], "OURS=THEIRS"),
        (["predict", "nowhere.json", "--size", "1e9", "--tokens", "1e10"], "nowhere.json"),
        (["predict", "table.csv", "--size", "1e9", "--tokens", "1e10"], "not a law"),
    ],
)
def test_bad_input_is_one_sentence_without_a_traceback(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    words: str,
) -> None:
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["metaopt-hpo", *args])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 1
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.startswith("error: ")
    assert len(shown.strip().splitlines()) == 1


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" not in run("report", "nowhere").stderr
    assert "Traceback" in run("--debug", "report", "nowhere").stderr


def test_verify_rule_prints_the_known_answer_and_writes_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "new" / "rule.html"
    rule = "lr ~ D^0.307, B ~ D^0.571"
    monkeypatch.setattr(sys, "argv", ["metaopt-hpo", "verify-rule", rule, "--page", str(page)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert re.search(r"rate loss, same momentum and batch +0\.5215", shown)
    assert "proved" in shown
    assert "<h2>Rule lr ~ D^0.307" in page.read_text(encoding="utf-8")


def test_a_usage_error_exits_with_two() -> None:
    assert run("compare", "text-lm", "--steps", "3").returncode == 2
    assert run("compare").returncode == 2


def test_a_corrupt_store_and_a_file_in_the_way_are_named(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "trials.sqlite").write_bytes(b"this is no database" * 100)
    done = run("compare", "text-lm", *TINY, "--methods", "grid", "--out", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert "trials.sqlite" in done.stderr
    assert "Traceback" not in done.stderr
    done = run("compare", "text-lm", *TINY, "--methods", "grid", "--out", "out/trials.sqlite/x", cwd=tmp_path)
    assert "cannot write to results folder" in done.stderr


@pytest.mark.slow
def test_a_whole_comparison_interrupted_resumed_reported_fitted_and_predicted(tmp_path: Path) -> None:
    args = ["compare", "text-lm", *PILOTS_TINY, "--out", "out"]
    env = {**os.environ, "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "metaopt_hpo.cli", *args],
        cwd=tmp_path,
        env=env,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for _ in range(4):  # a few trials are done
        process.stderr.readline()
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(60) == 130, rest
    assert "interrupted" in rest
    assert "Traceback" not in rest

    start = time.time()
    done = run(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "report written to out/report.html" in done.stdout
    comparison = Comparison.read(tmp_path / "out")
    records = comparison.table.records()
    finished = [r for r in records if r.state == "complete"]
    assert len({(r.study, r.trial) for r in finished}) == len(finished)
    # one lr is finished once in a search, however often it was interrupted
    searched = [(r.study, round(r.lr, 12)) for r in finished if r.method in ("grid", "pilot", "metaoptimize")]
    assert len(set(searched)) == len(searched)
    budget = comparison.plan.runs * max(r.cost for r in finished)
    for name in ("grid", "tpe", "metaoptimize"):
        assert sum(r.cost for r in finished if r.method == name) == pytest.approx(budget)

    again = run(*args, "--workers", "1", cwd=tmp_path)
    assert again.returncode == 0
    assert len(Comparison.read(tmp_path / "out").table) == len(records)
    assert start < (tmp_path / "out" / "report.html").stat().st_mtime

    fitted = run("fit", "out/trials.parquet", "--out", "law.json", cwd=tmp_path)
    if fitted.returncode == 0:
        predicted = run("predict", "law.json", "--size", "1e6", "--tokens", "1e6", cwd=tmp_path)
        assert predicted.returncode == 0, predicted.stderr
        assert re.search(r"lr\s+\d", predicted.stdout)
    else:
        # so few steps that the table may not bear a law; then it says why
        assert fitted.stderr.startswith("error: ")
