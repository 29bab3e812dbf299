"""The Triton step in Triton's interpreter, against plain operations; a process of its own, for the interpreter must be
chosen before Triton is imported."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from metaopt_hpo.optim import MetaOptimize, Muon, Rule
from metaopt_hpo.optim.kernels import triton_step
from metaopt_hpo.optim.kernels.layout import dither_
from metaopt_hpo.strategies.shared_meta import SharedAdam
from metaopt_hpo.strategies.torch_rules import TorchMomentum, TorchRMSprop

INTERPRETED = triton_step.interpreted()
inside = pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own, with Triton's interpreter")
BASES = ["sgd", "sgdm", "rmsprop", "adamw", "lion"]


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_in_the_interpreter() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]


def trained(kernel: str, dtype: torch.dtype, steps: int = 4, missing: bool = False, bad: int = -1, **options):
    """Tensors of several sizes and layouts, two groups, a schedule on one of them."""
    gen = torch.Generator().manual_seed(0)
    shapes = [(50, 90), (), (3,), (0,), (4, 5)]
    params = [nn.Parameter(torch.randn(s, generator=gen, dtype=torch.float64).to(dtype)) for s in shapes]
    params[4].data = params[4].data.t().contiguous().t()
    named = [(f"layer{i % 2}.p{i}", p) for i, p in enumerate(params)]
    groups = [{"params": named[:3], "weight_decay": 0.1}, {"params": named[3:], "lr": 5e-3}]
    opt = MetaOptimize(groups, lr=1e-2, meta_lr=0.05, compile=kernel, **options)
    for step in range(steps):
        opt.param_groups[1]["lr"] = 5e-3 * (1 + step)
        for i, p in enumerate(params):
            g = torch.randn(p.shape, generator=gen, dtype=torch.float64).to(dtype)
            p.grad = None if missing and (i + step) % 3 == 0 else torch.empty_like(p).copy_(g)
        if step == bad:
            params[0].grad[0, 0] = float("nan")
        opt.step()
    assert opt.param_groups[0]["kernel"] == kernel
    return params, opt


def check(dtype: torch.dtype, loose: float = 1.0, **options) -> MetaOptimize:
    params, opt = trained("triton", dtype, **options)
    plain, other = trained("eager", dtype, **options)
    tolerance = loose * {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2e-2}[dtype]
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance, equal_nan=True)
        for name, x in opt.state[p].items():
            y = other.state[q][name]
            torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, equal_nan=True)
    torch.testing.assert_close(opt.step_sizes(), other.step_sizes(), rtol=tolerance, atol=0.0)
    for a, b in zip(opt.param_groups, other.param_groups, strict=True):
        torch.testing.assert_close(a["step_size"], b["step_size"], rtol=tolerance, atol=0.0)
    for name in ("meta_step", "skipped", *(f"meta_{n}" for n in opt._settings.meta.states)):
        torch.testing.assert_close(
            opt._kept.shared[name], other._kept.shared[name], rtol=10 * tolerance, atol=1e-12
        )
    return opt


@inside
@pytest.mark.parametrize("meta", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize("base", BASES)
def test_rules(base: str, meta: str) -> None:
    check(torch.float64, base=base, meta=meta, blocks="layer", gamma=0.9)


@inside
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("blocks", ["scalar", "tensor"])
def test_dtypes_and_blocks(dtype: torch.dtype, blocks: str) -> None:
    check(dtype, blocks=blocks)


@inside
@pytest.mark.parametrize(
    "options",
    [{"max_grad_norm": 0.5}, {"maximize": True}, {"beta_bounds": (-5.0, -4.55)}, {"missing": True}, {"bad": 1},
     {"bad": 2, "blocks": "tensor"}],
)  # fmt: skip
def test_options(options: dict) -> None:
    assert (check(torch.float64, **options).skipped > 0) == ("bad" in options)


@inside
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_short_trace_is_rounded_as_by_plain_operations(dtype: torch.dtype) -> None:
    check(dtype, loose=400.0 if dtype == torch.float32 else 4.0, trace_dtype=torch.bfloat16)


@inside
@pytest.mark.parametrize("blocks", ["scalar", "rule"])
def test_muons_matrices_run_beside_it(blocks: str) -> None:
    check(torch.float64, base=Muon(hidden=lambda name, p: p.ndim == 2 and p.numel() > 0), blocks=blocks,
          max_grad_norm=0.5)  # fmt: skip


@inside
def test_stochastic_rounding_keeps_small_updates() -> None:
    """Nearest rounding of bfloat16 weights drops every update below 1/512 of the weight."""
    moved = {}
    for stochastic in (False, True):
        p = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        opt = MetaOptimize(
            [p], lr=1e-3, base="sgd", meta_lr=0.0, compile="triton", stochastic_rounding=stochastic
        )
        for _ in range(20):
            p.grad = torch.ones_like(p)
            opt.step()
        moved[stochastic] = float((1 - p.detach().float()).mean())
    assert moved[False] == 0.0
    assert moved[True] == pytest.approx(0.02, rel=0.1)


@inside
def test_two_launches_whatever_the_number_of_tensors_and_nothing_new_for_decay(monkeypatch) -> None:
    seen: list[tuple] = []
    real = triton_step.launch

    def spy(kernel, grid, *args, **constants) -> None:
        numbers = tuple(x for x in args if not isinstance(x, Tensor))
        seen.append((kernel.__name__, numbers, tuple((k, str(v)) for k, v in constants.items())))
        real(kernel, grid, *args, **constants)

    monkeypatch.setattr(triton_step, "launch", spy)
    kinds = []
    for count, decay, size in [(1, 0.0, 10), (40, 0.1, 33), (7, 0.3, 5000)]:
        params = [nn.Parameter(torch.ones(size)) for _ in range(count)]
        opt = MetaOptimize(params, weight_decay=decay, compile="triton", gamma=1 - decay)
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
        seen.clear()
        opt.step()
        assert [name for name, *_ in seen] == ["advance", "settle"]
        kinds.append(tuple(seen))
    assert kinds[0] == kinds[1] == kinds[2]


@inside
def test_a_resumed_run_is_bitwise_the_run() -> None:
    params, opt = trained("triton", torch.float32)
    state = opt.state_dict()
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    names = [m.name for m in opt._kept.blocks.members.values()]
    named = list(zip(names, twins, strict=True))
    groups = [{"params": named[:3]}, {"params": named[3:]}]
    other = MetaOptimize(groups, lr=1e-2, compile="triton")
    other.load_state_dict(state)
    for o, ps in ((opt, params), (other, twins)):
        for p in ps:
            p.grad = torch.ones_like(p)
        o.step()
    assert all(torch.equal(p, q) for p, q in zip(params, twins, strict=True))
    assert torch.equal(opt.step_sizes(), other.step_sizes())


@inside
def test_a_changed_shape_is_refused() -> None:
    params, opt = trained("triton", torch.float32)
    params[0].data, params[0].grad = params[0].data[:5].clone(), None
    for p in params:
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match="has changed its shape"):
        opt.step()


def test_the_hash_of_the_short_trace_is_one() -> None:
    """eager's dither, which C and Triton repeat: unbiased, and only to a neighbour."""
    x = torch.full((20_000,), 1.0 + 1 / 512)
    short = torch.empty(20_000, dtype=torch.bfloat16)
    dither_(short, x, 3.0)
    assert set(short.float().tolist()) == {1.0, 1.0078125}
    assert float(short.float().mean()) == pytest.approx(1 + 1 / 512, rel=2e-4)


@inside
@pytest.mark.parametrize("bad", [-1, 2])
def test_a_meta_rule_that_looks_at_several_blocks(bad: int) -> None:
    """It has no description; the weights still take one launch."""
    check(torch.float64, meta=SharedAdam(), blocks="layer", missing=True, bad=bad)


@inside
@pytest.mark.parametrize(
    "base", [TorchMomentum(dampening=0.1), TorchMomentum(nesterov=True), TorchRMSprop(momentum=0.5)]
)
def test_rules_that_decide_by_their_own_numbers(base: Rule) -> None:
    check(torch.float64, base=base)
