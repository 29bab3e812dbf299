"""GradScaler, autocast and gradient accumulation, used the way torch's documentation uses them."""

from __future__ import annotations

import math

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
