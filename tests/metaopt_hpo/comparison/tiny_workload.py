"""A workload of milliseconds: least squares on streamed Gaussian data; an lr far too high diverges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from metaopt_hpo.workloads.base import step_generator


@dataclass(frozen=True)
class Tiny:
    width: int = 8
    batch: int = 16
    name: str = "tiny"

    @property
    def size(self) -> int:
        return self.width + 1

    @property
    def flops_per_token(self) -> float:
        return 6.0 * self.size

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Linear(self.width, 1)

    def losses(self, model: nn.Module, step: int, seed: int, parts: int) -> tuple[Tensor, ...]:
        x = torch.randn(self.batch, self.width, generator=step_generator(seed, step))
        x = x + 1e-3 * torch.randn_like(
            x
        )  # from the global generator, so that an exact resume needs its state
        return tuple(self._loss(model, part) for part in x.chunk(parts))

    def held_out_loss(self, model: nn.Module) -> float:
        x = torch.randn(256, self.width, generator=step_generator(99, 0))
        return float(self._loss(model, x))

    def _loss(self, model: nn.Module, x: Tensor) -> Tensor:
        goal = torch.linspace(0.5, 1.5, self.width)
        return 0.1 + nn.functional.mse_loss(model(x)[:, 0], x @ goal)

    def with_batch(self, batch: int) -> Self:
        return replace(self, batch=batch)
