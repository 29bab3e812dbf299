"""TrialRun without a cluster: what it reports, and what it goes on from where checkpoints are damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ray import tune

from metaopt_hpo.training import model_size
from metaopt_hpo.training.checkpoint import CheckpointError
from metaopt_hpo.trials.logged_results import NOTE
from metaopt_hpo_ray import TrialRun, TuneWarning, _compat, build_strategy, size_of

CONFIG = {"size": 9, "tokens": 512, "batch": 16, "strategy": "wsd", "lr": 1e-2}


class Session:
    """Stands in for Tune's: keeps reports, and each checkpoint in a folder beside the others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reports: list[dict[str, Any]] = []
        self.given: Any = None
        self.stop_at = 10**9

    def report(self, metrics: dict[str, Any], checkpoint: Any = None) -> None:
        self.reports.append(metrics)
        if checkpoint is not None:
            kept = self.folder / f"checkpoint_{len(self.reports):06d}"
            kept.mkdir(parents=True, exist_ok=True)
            (kept / "run.pt").write_bytes(Path(checkpoint.path, "run.pt").read_bytes())
        if metrics["tokens_seen"] >= self.stop_at:
            raise KeyboardInterrupt

    @property
    def kept(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint_*"))


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    out = Session(tmp_path / "trial")
    monkeypatch.setattr(_compat, "in_trial", lambda: True)
    monkeypatch.setattr(_compat, "in_train_worker", lambda: False)
    monkeypatch.setattr("metaopt_hpo_ray.trial_run.tune.report", out.report)
    monkeypatch.setattr("metaopt_hpo_ray.trial_run.tune.get_checkpoint", lambda: out.given)
    return out


def train(config: dict[str, Any] = CONFIG) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    x = torch.randn(64, 8)
    y = x.sum(1, keepdim=True)

    def loss() -> torch.Tensor:
        return (model(x) - y).square().mean()

    strategy = build_strategy(config)
    with TrialRun(config, model, strategy, size=9, tokens=config["tokens"], batch=16, evaluate=loss) as run:
        for _ in run:
            run.step(loss())


def cut_short(path: Path) -> None:
    content = (path / "run.pt").read_bytes()
    (path / "run.pt").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("damaged", [0, 1, 2, 99])
def test_it_goes_on_exactly_from_the_newest_checkpoint_that_is_whole(session: Session, damaged: int) -> None:
    train()
    whole = [(r["tokens_seen"], r["loss"]) for r in session.reports]
    session.reports, session.stop_at = [], 300
    for path in session.kept:
        (path / "run.pt").unlink()
        path.rmdir()
    with pytest.raises(KeyboardInterrupt):
        train()
    kept = session.kept
    for path in kept[len(kept) - min(damaged, len(kept)) :]:
        cut_short(path)
    before, session.reports, session.stop_at = len(session.reports), [], 10**9
    session.given = tune.Checkpoint.from_directory(str(kept[-1]))
    if damaged:
        with pytest.warns(TuneWarning, match="cannot be read"):
            train()
    else:
        train()
    skipped = max(0, before - damaged)
    assert [(r["tokens_seen"], r["loss"]) for r in session.reports] == whole[skipped:]
    said = session.reports[-1].get(NOTE, "")
    assert ("it went on from the older" in said) == (0 < damaged < before)
    assert ("started again at its first step" in said) == (damaged >= before)


def test_another_runs_checkpoint_is_an_error_and_not_a_new_start(session: Session) -> None:
    train()
    session.given = tune.Checkpoint.from_directory(str(session.kept[-1]))
    with pytest.raises(CheckpointError, match="another run's"):
        train({**CONFIG, "tokens": 1024})


def test_every_report_says_who_tunes_and_what_was_found(session: Session) -> None:
    train({**CONFIG, "strategy": "metaoptimize", "lr": None})
    assert {r["tuning"] for r in session.reports} == {"self"}
    assert session.reports[-1]["found_lr"] > 0
    assert "unique_tokens" in session.reports[-1]


def test_a_size_is_counted_without_weights_and_without_embeddings() -> None:
    def build(width: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Embedding(1000, width), torch.nn.Linear(width, 3, bias=False))

    assert size_of(build, 10**6) == 3 * 10**6
    assert size_of(build, width=7) == 21
    with pytest.raises(ValueError, match="no trainable parameter"):
        size_of(torch.nn.ReLU)


class RowEmbedding(torch.nn.Module):
    """An embedding of somebody's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(50, width))


def test_a_size_is_what_a_run_would_count() -> None:
    def build(width: int) -> torch.nn.Module:
        return torch.nn.Sequential(RowEmbedding(width), torch.nn.Linear(width, 3))

    assert size_of(build, 8) == model_size(build(8)) == 27
