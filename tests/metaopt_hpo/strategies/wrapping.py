"""Optimizers to wrap, and a small model for them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

O = torch.optim


PLAIN = {"meta_lr": 0.0, "warmup": 0.0, "cooldown": 0.0, "guard": False}
"""With these a run is the optimizer itself at its own lr."""


def Lion(params: Any, **options: Any) -> torch.optim.Optimizer:
    return pytest.importorskip("pytorch_optimizer").Lion(params, **options)


RECIPES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda p: O.AdamW(p, lr=3e-3, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1),
    "adamw amsgrad": lambda p: O.AdamW(p, lr=3e-3, amsgrad=True),
    "adamw maximize": lambda p: O.AdamW(p, lr=3e-3, maximize=True),
    "adam": lambda p: O.Adam(p, lr=3e-3),
    "adam l2": lambda p: O.Adam(p, lr=3e-3, weight_decay=0.1),
    "adam l2 maximize": lambda p: O.Adam(p, lr=3e-3, weight_decay=0.1, maximize=True),
    "sgd": lambda p: O.SGD(p, lr=3e-2, weight_decay=0.01),
    "momentum": lambda p: O.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.01),
    "dampening": lambda p: O.SGD(p, lr=1e-2, momentum=0.9, dampening=0.3),
    "nesterov": lambda p: O.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: O.RMSprop(p, lr=1e-3, weight_decay=0.01),
    "rmsprop centered momentum": lambda p: O.RMSprop(p, lr=1e-3, centered=True, momentum=0.5, alpha=0.9),
    "lion": lambda p: Lion(p, lr=1e-3, weight_decay=0.1),
    "lion l2": lambda p: Lion(p, lr=1e-3, weight_decay=0.1, weight_decouple=False),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)).double()


def losses(model: nn.Module, steps: int) -> Any:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(16, 6, generator=generator, dtype=torch.float64)
        yield (model(x) - x[:, :2].abs()).square().mean()


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups with learning rates of their own would be the same for all recipes; a decay of its own is not."""
    return [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0, "lr": 2e-3},
    ]


def adamw(**options: Any) -> torch.optim.Optimizer:
    return O.AdamW(net().parameters(), **options)


def take(run: Any, model: nn.Module, steps: int, factor: float = 1.0) -> None:
    for loss in losses(model, steps):
        loss.backward()
        run.step(loss.detach() * factor)


def one_step(model: nn.Module, run: Any, step: int) -> None:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    loss = (model(x) - x[:, :2].abs()).square().mean()
    loss.backward()
    run.step(loss)
