"""GradScaler, autocast and gradient accumulation, used the way torch's documentation uses them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaopt_hpo.optim import MetaOptimize


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))


def batch(step: int, size: int = 16) -> tuple[Tensor, Tensor]:
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(step))
    return x, x.sum(1, keepdim=True)


@pytest.mark.parametrize("kernel", ["eager", "auto"])
def test_grad_scaler_unscales_and_skips(kernel: str) -> None:
    """A scaled run is the unscaled one; a step whose gradients overflow is skipped, β and trace included."""
    model, twin = net(), net()
    opt = MetaOptimize(model.parameters(), lr=1e-2, meta_lr=0.1, compile=kernel)
    ref = MetaOptimize(twin.parameters(), lr=1e-2, meta_lr=0.1, compile=kernel)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(8):
        x, y = batch(step)
        opt.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        scaler.scale(loss * (math.inf if step == 4 else 1.0)).backward()
        scaler.step(opt)
        scaler.update()
        if step == 4:
            continue
        ref.zero_grad()
        nn.functional.mse_loss(twin(x), y).backward()
        ref.step()
    assert scaler.get_scale() == 2.0**9
    assert opt.skipped == 0
    torch.testing.assert_close(opt.step_sizes(), ref.step_sizes())
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert float(opt.state[p]["step"]) == 7
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("trace", ["hessian_free", "2x2"])
def test_autocast_trains(trace: str) -> None:
    model = net()
    opt = MetaOptimize(model.parameters(), lr=1e-2, meta_lr=0.05, trace=trace)
    losses = []
    for step in range(60):
        x, y = batch(step)

        def loss_of(x: Tensor = x, y: Tensor = y) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return nn.functional.mse_loss(model(x).float(), y)

        if trace == "2x2":
            losses.append(opt.step(loss_of).item())
        else:
            opt.zero_grad()
            loss = loss_of()
            loss.backward()
            losses.append(loss.item())
            opt.step()
    assert opt.state[next(model.parameters())]["m"].dtype == torch.float32
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])


def test_accumulated_gradients_are_the_joined_batch() -> None:
    model, twin = net().double(), net().double()
    opt = MetaOptimize(model.parameters(), lr=1e-2, meta_lr=0.1)
    ref = MetaOptimize(twin.parameters(), lr=1e-2, meta_lr=0.1)
    for step in range(5):
        x, y = (t.double() for t in batch(step))
        opt.zero_grad()
        for part, target in zip(x.chunk(4), y.chunk(4), strict=True):
            (nn.functional.mse_loss(model(part), target) / 4).backward()
        opt.step()
        ref.zero_grad()
        nn.functional.mse_loss(twin(x), y).backward()
        ref.step()
    torch.testing.assert_close(opt.step_sizes(), ref.step_sizes(), rtol=1e-10, atol=0.0)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kernel", ["eager", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_short_trace_loses_nothing_on_average(kernel: str, dtype: torch.dtype) -> None:
    """1,000 equal steps: rounding to nearest would stop at 256 of them, the trace follows within the noise of
    one rounding."""
    p = nn.Parameter(torch.zeros(4_000, dtype=dtype))
    opt = MetaOptimize([p], lr=1e-3, base="sgd", meta_lr=0.0, trace_dtype=torch.bfloat16, compile=kernel)
    for _ in range(1_000):
        p.grad = torch.ones_like(p)
        opt.step()
    h = opt.state[p]["h"]
    assert h.dtype == torch.bfloat16
    assert float(h.float().mean()) == pytest.approx(-1.0, rel=2e-3)
    assert float(h.float().std()) < 0.1


@pytest.mark.parametrize("kernel", ["eager", "auto"])
def test_a_short_trace_finds_the_same_step_size(kernel: str) -> None:
    """Its effect on the result: none to speak of, on step size and loss."""
    found = []
    for trace_dtype in [None, torch.bfloat16]:
        model = net()
        opt = MetaOptimize(model.parameters(), lr=1e-3, meta_lr=0.02, trace_dtype=trace_dtype, compile=kernel)
        for step in range(300):
            x, y = batch(step)
            opt.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            opt.step()
        found.append((opt.step_sizes().item(), loss.item()))
    assert found[1][0] == pytest.approx(found[0][0], rel=0.05)
    assert found[1][1] == pytest.approx(found[0][1], rel=0.25)


def test_a_short_trace_keeps_its_bits_through_a_checkpoint() -> None:
    model = net()
    opt = MetaOptimize(model.parameters(), lr=1e-2, meta_lr=0.1, trace_dtype=torch.bfloat16)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    opt.step()
    other = MetaOptimize(net().parameters(), lr=1e-2, meta_lr=0.1, trace_dtype=torch.bfloat16)
    other.load_state_dict(opt.state_dict())
    for p, q in zip(model.parameters(), other.param_groups[0]["params"], strict=True):
        assert other.state[q]["h"].dtype == torch.bfloat16
        assert torch.equal(opt.state[p]["h"], other.state[q]["h"])
    for bad in [torch.float16, torch.int8]:
        with pytest.raises(ValueError, match="trace_dtype"):
            MetaOptimize(net().parameters(), trace_dtype=bad)
    with pytest.raises(ValueError, match="trace_dtype"):
        MetaOptimize(net().parameters(), trace_dtype=torch.bfloat16, trace="2x2")


@pytest.mark.parametrize("kernel", ["eager", "inductor", "auto"])
@pytest.mark.parametrize(
    "options", [{}, {"trace_dtype": torch.bfloat16}, {"blocks": "weight"}], ids=["", "short trace", "weight"]
)
def test_stochastic_rounding_keeps_small_updates(kernel: str, options: dict[str, Any]) -> None:
    """Nearest rounding of bfloat16 weights drops every update below 1/512 of the weight."""
    moved = {}
    for stochastic in (False, True):
        p = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        opt = MetaOptimize([p], lr=1e-3, base="sgd", meta_lr=0.0, compile=kernel,
                           stochastic_rounding=stochastic, **options)  # fmt: skip
        for _ in range(20):
            p.grad = torch.ones_like(p)
            opt.step()
        moved[stochastic] = float((1 - p.detach().float()).mean())
    assert moved[False] == 0.0
    assert moved[True] == pytest.approx(0.02, rel=0.1)


def test_every_kernel_rounds_by_the_same_noise() -> None:
    """One optimizer on the C kernel and one on plain operations: weights differ only where the sums do, by an ulp."""
    ends = []
    for kernel in ("native", "eager"):
        model = net().bfloat16()
        opt = MetaOptimize(
            model.parameters(), lr=1e-2, meta_lr=0.05, compile=kernel, stochastic_rounding=True
        )
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator).bfloat16()
            opt.step()
        ends.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    assert (ends[0] == ends[1]).float().mean() > 0.95


def test_stochastic_rounding_is_refused_with_hessian_products() -> None:
    with pytest.raises(ValueError, match="stochastic_rounding"):
        MetaOptimize(net().parameters(), stochastic_rounding=True, trace="2x2")
