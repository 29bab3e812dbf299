"""Whole steps of every strategy on a GPU that is not there: none waits for it, once a run has started."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from metaopt_hpo.strategies import available, get, make
from metaopt_hpo.strategies.wrap import wrap
from metaopt_hpo.training.run import TrainingRun


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).resolve().parents[1] / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


harness = _load("fake_cuda")
HORIZON = 40
READS = 4
"""Of ours in a whole run: two in the first step, which measures how large it may be, one look at whether the run has
begun to learn, and one for the correction."""


@pytest.mark.skipif(harness.OWN, reason="this is that process")
def test_in_a_process_of_its_own() -> None:
    harness.in_own_process(__file__)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16, device="cuda"), nn.Tanh(), nn.Linear(16, 4, device="cuda"))


def steps(run, trained: nn.Module, count: int) -> None:
    for _ in range(count):
        for p in trained.parameters():
            p.grad = torch.ones_like(p)
        run.step(torch.ones((), device="cuda"))


WAITING = ("d-adaptation", "dog", "ldog", "mechanic", "momo", "prodigy", "prodigy-schedule-free")
"""Rivals whose published code reads numbers from the device at every step."""
NEEDS_A_DEVICE = ("gdtuo",)
"""Its step runs a backward pass, which fake tensors have not."""
CASES = [(name, base) for name in available() for base in get(name).bases if name not in NEEDS_A_DEVICE]


@harness.inside
@pytest.mark.parametrize(("name", "base"), CASES)
def test_a_strategy(name: str, base: str) -> None:
    with harness.fake_cuda():
        trained = model()
        ours = name == "metaoptimize"
        run = make(name, base=base).build(trained, HORIZON)
        if name in WAITING:
            with pytest.raises(harness.Waits):
                steps(run, trained, 5)
            return
        steps(run, trained, HORIZON if ours else 5)
        assert len(harness.reads) <= (READS if ours else 0)


@harness.inside
@pytest.mark.parametrize(
    "options", [{"blocks": "layer"}, {"blocks": "weight"}, {"expected": 1e-3}, {"meta": "lion"}]
)
def test_ours_with_options(options: dict) -> None:
    with harness.fake_cuda():
        trained = model()
        steps(make("metaoptimize", **options).build(trained, HORIZON), trained, HORIZON)
        assert len(harness.reads) <= READS


@harness.inside
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_a_wrapped_optimizer(kind: type[torch.optim.Optimizer]) -> None:
    with harness.fake_cuda():
        trained = model()
        steps(wrap(kind(trained.parameters(), lr=1e-3), HORIZON, trained), trained, HORIZON)
        assert len(harness.reads) <= READS


@harness.inside
def test_a_training_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """120 steps: past two looks at the loss; reports, which read numbers, are left out, and so is `backward()`."""

    def backward(losses: Sequence[torch.Tensor], model: nn.Module, **_: object) -> torch.Tensor:
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        return losses[0]

    monkeypatch.setattr(TrainingRun, "_report", lambda *_: None)
    monkeypatch.setattr("metaopt_hpo.training.run.backward", backward)
    with harness.fake_cuda():
        options = {"size": 200, "tokens": 120 * 32, "batch": 32, "evaluate": lambda: 1.0}
        run = TrainingRun(model(), make("cosine", lr=1e-3), **options)
        while run.steps_taken < run.horizon:
            run.step(torch.ones((), device="cuda"))
        assert harness.reads == []
