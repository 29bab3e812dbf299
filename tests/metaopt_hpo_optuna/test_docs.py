"""The how-tos: every block of code, and every step of the tutorial after its diff, runs."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(name: str) -> list[tuple[str, str]]:
    """(language, code) of the page's blocks in order."""
    return re.findall(r"```(python|diff)\n(.*?)```", (DOCS / name).read_text(), flags=re.S)


def run(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **environment: str) -> dict[str, Any]:
    """Run a page's script in this process, as if it were the main module."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        for key, value in environment.items():
            patch.setenv(key, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(code, "docs", "exec"), names)
    return names


def apply(code: str, diff: str) -> str:
    """The code after a diff without line numbers, whose old part must occur exactly once."""
    lines = [line or " " for line in diff.splitlines()]
    old = "".join(line[1:] + "\n" for line in lines if line[0] in " -")
    new = "".join(line[1:] + "\n" for line in lines if line[0] in " +")
    assert code.count(old) == 1, f"the diff does not apply:\n{diff}"
    return code.replace(old, new)


def test_a_diff_that_does_not_apply_is_noticed() -> None:
    assert apply("a\nb\n", " a\n-b\n+c\n") == "a\nc\n"
    with pytest.raises(AssertionError, match="does not apply"):
        apply("a\nb\n", "-c\n+d\n")


@pytest.mark.slow
def test_from_a_plain_objective_every_step_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = re.split(r"^## ", (DOCS / "optuna-from-a-plain-objective.md").read_text(), flags=re.M)[1:]
    code = ""
    for part in parts:
        for language, text in re.findall(r"```(python|diff)\n(.*?)```", part, flags=re.S):
            code = text if language == "python" else apply(code, text)
        run(code, tmp_path, monkeypatch)
    assert len(parts) == 6
    assert (tmp_path / "law.html").exists()
    study = optuna.load_study(study_name="mlp", storage=f"sqlite:///{tmp_path / 'study.sqlite'}")
    assert len(study.trials) == 12  # the last step went on with the study of the one before
    assert list((tmp_path / "checkpoints").glob("mlp-trial-*.pt"))


@pytest.mark.slow
def test_many_workers_on_one_postgresql(
    postgres: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((_, code),) = blocks("optuna-many-workers.md")
    url = postgres.new_database()  # type: ignore[attr-defined]
    for _ in range(2):
        run(code, tmp_path, monkeypatch, STUDY_URL=url, CHECKPOINTS=str(tmp_path), TRIALS="2")
    study = optuna.load_study(study_name="widths", storage=url)
    assert len(study.trials) == 4
    assert all(t.state.is_finished() for t in study.trials)


@pytest.mark.slow
def test_large_from_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ((_, code),) = blocks("optuna-large-from-small.md")
    large = run(code, tmp_path, monkeypatch)["large"]
    lrs = [t.params["lr"] for t in large.trials]
    assert lrs[0] == 0.09
    assert all(0.002 < lr < 0.02 for lr in lrs[1:])  # the optimum there is 0.0051
