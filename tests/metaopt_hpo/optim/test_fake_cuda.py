"""A step on a GPU never waits for it: whole steps on fake CUDA tensors, where reading a number raises."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch
from torch import nn

from metaopt_hpo.optim import MetaOptimize, Muon
from metaopt_hpo.strategies.shared_meta import SharedAdam


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).resolve().parents[1] / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


harness = _load("fake_cuda")


@pytest.mark.skipif(harness.OWN, reason="this is that process")
def test_in_a_process_of_its_own() -> None:
    harness.in_own_process(__file__)


@harness.inside
def test_reading_a_number_raises() -> None:
    with harness.fake_cuda(), pytest.raises(harness.Waits):
        torch.ones(3, device="cuda").sum().item()


def steps(launches: list[str], count: int = 60, **options) -> MetaOptimize:
    model = nn.Sequential(nn.Linear(8, 16, device="cuda"), nn.Tanh(), nn.Linear(16, 4, device="cuda"))
    opt = MetaOptimize(model.named_parameters(), lr=1e-3, weight_decay=0.1, **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, max(1, count))
    for _ in range(count):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        launches.clear()
        opt.step()
        schedule.step()
    return opt


@harness.inside
@pytest.mark.parametrize(
    "options",
    [{}, {"blocks": "layer"}, {"blocks": "tensor", "max_grad_norm": 1.0}, {"base": "lion", "meta": "lion"},
     {"trace_dtype": torch.bfloat16}],
)  # fmt: skip
def test_the_fast_step(options: dict) -> None:
    """60 steps: past the 50th, where the watch copies β."""
    with harness.fake_cuda() as launches:
        opt = steps(launches, **options)
        assert launches == ["advance", "settle"]
        assert opt.param_groups[0]["kernel"] == "triton"
        assert all(state["step"].device.type == "cuda" for state in opt.state.values())


@harness.inside
@pytest.mark.parametrize(
    "options",
    [{"compile": "eager"}, {"compile": "eager", "blocks": "tensor", "max_grad_norm": 1.0}, {"blocks": "weight"},
     {"compile": "eager", "trace_dtype": torch.bfloat16}, {"base": Muon(hidden=lambda name, p: p.ndim == 2)}],
)  # fmt: skip
def test_the_plain_step(options: dict) -> None:
    with harness.fake_cuda() as launches:
        steps(launches, count=3, **options)
        assert launches == (["advance", "settle"] if "base" in options else [])


@harness.inside
def test_setting_and_scaling_step_sizes() -> None:
    with harness.fake_cuda() as launches:
        opt = steps(launches, count=2)
        opt.set_step_size(0.1)
        opt.scale_step_size(0.5)
        opt.set_step_size(opt.step_sizes() * 2)
        opt.meta_lr = 0.0


@harness.inside
@pytest.mark.parametrize("through", ["optimizer", "wrap"])
def test_a_model_that_moves_after_its_optimizer_was_made(through: str) -> None:
    from metaopt_hpo import wrap

    with harness.fake_cuda():
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        run = None
        if through == "wrap":
            run = wrap(torch.optim.AdamW(model.parameters()), 10, limit=None, guard=False)
            opt = run.optimizer
        else:
            opt = MetaOptimize(model.parameters(), lr=1e-3)
        for p in model.parameters():
            p.fake_device = torch.device("cuda", 0)  # what `.to("cuda")` does to a tensor that is there
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            if run is None:
                opt.step()
            else:
                run.step()
        assert opt.step_sizes().device.type == "cuda"
        assert all(s["h"].device.type == "cuda" for s in opt.state.values())


@contextlib.contextmanager
def recording() -> Iterator[None]:
    with mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=True):
        yield


@harness.inside
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0, "blocks": "layer"}])
def test_a_captured_step_launches_the_same(options: dict) -> None:
    with harness.fake_cuda() as launches:
        opt = steps(launches, count=3, **options)
        opt.refresh()  # the schedule has moved since
        whole, tables = opt._steps.whole, dict(opt._steps.whole._tables.by_name)
        launches.clear()
        with recording():
            opt.step()
        assert launches == ["advance", "settle"]
        # the graph's pointers are in tables of its own, and what it reads of them is kept
        assert len(whole._tables.kept) == 4
        assert all(opt._steps.whole._tables.by_name[name] is table for name, table in tables.items())


@harness.inside
def test_numbers_that_would_be_frozen_into_a_graph_are_refused() -> None:
    with harness.fake_cuda() as launches:
        opt = steps(launches, count=3)
        opt.param_groups[0]["weight_decay"] = 0.3
        with recording(), pytest.raises(RuntimeError, match="has changed since its last step"):
            opt.step()
        opt.refresh()
        with recording():
            opt.step()


@harness.inside
@pytest.mark.parametrize(
    "options",
    [{"compile": "eager"}, {"blocks": "weight"}, {"meta": SharedAdam(), "blocks": "layer"},
     {"base": Muon(hidden=lambda name, p: p.ndim == 2)}],
)  # fmt: skip
def test_what_cannot_be_captured_is_refused(options: dict) -> None:
    with harness.fake_cuda() as launches:
        opt = steps(launches, count=3, **options)
        with recording(), pytest.raises(RuntimeError, match="captured into a CUDA graph only"):
            opt.step()


@harness.inside
def test_the_first_step_cannot_be_captured() -> None:
    with harness.fake_cuda() as launches:
        opt = steps(launches, count=0)
        for p in opt.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        with recording(), pytest.raises(RuntimeError, match="after steps outside the graph"):
            opt.step()
        with pytest.raises(RuntimeError, match=r"refresh\(\) is for steps captured"):
            opt.refresh()
