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
