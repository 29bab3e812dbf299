"""Variants of Adam from the package `pytorch-optimizer`: AdamG, said to need no lr, and ADOPT, which needs one.

Sources: AdamG, Pan et al. 2024 (arXiv 2405.04376); ADOPT, Taniguchi et al. 2024 (arXiv 2411.02853).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metaopt_hpo.strategies.base import LRRun
from metaopt_hpo.strategies.checks import check_positive
from metaopt_hpo.strategies.registry import register
from metaopt_hpo.strategies.rivals.base import RivalRun, ScheduledRival


@register("adamg")
@dataclass(frozen=True, kw_only=True)
class AdamG(ScheduledRival):
    """AdamG: Adam whose numerator is scaled by p·vᵠ, so that it needs no lr. Some runs diverge at its defaults.

    Args:
        lr: upper bound of the step size, 1 as in the package; it falls by itself as 1/√t, so no schedule.
        weight_decay: decoupled; none by default: at lr = 1 the package would shrink weights by the whole
            weight_decay each step.
        max_grad_norm: no clipping by default, as the scale is read off the gradients.
        betas: momentum and second moment, (0.95, 0.999) as in the package.
        beta3: decay of the scale's running mean (0.95).
        p, q: of the scale p·vᵠ (0.2 and 0.24).
    """

    package: ClassVar[str] = "pytorch-optimizer"
    module: ClassVar[str] = "pytorch_optimizer"

    lr: float = 1.0
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    beta3: float = 0.95
    p: float = 0.2
    q: float = 0.24

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "p", "q")
        if not 0 <= self.beta3 < 1:
            raise ValueError(f"beta3 must lie in [0, 1), got {self.beta3!r}")

    def _optimizer(self, groups: list[dict[str, Any]], horizon: int) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self._imported().AdamG(
            groups,
            lr=self.lr,
            betas=(*self.betas, self.beta3),
            p=self.p,
            q=self.q,
            weight_decouple=True,
        )
        return optimizer

    def _run(
        self, optimizer: torch.optim.Optimizer, horizon: int, model: nn.Module | list[nn.Parameter]
    ) -> LRRun:
        return AdamGRun(self, optimizer, horizon)


class AdamGRun(RivalRun):
    """A run whose step size is min(lr, 1/√t) times the mean of the scale r over a group's weights."""

    def _step_sizes(self) -> Iterable[float | Tensor]:
        for group in self.optimizer.param_groups:
            scales = [self.optimizer.state[p]["r"] for p in group["params"] if "r" in self.optimizer.state[p]]
            if not scales:
                yield 0.0  # there is no scale before the first gradient
                continue
            mean = sum(float(r.double().sum()) for r in scales) / sum(r.numel() for r in scales)
            yield min(group["lr"], 1 / math.sqrt(group["step"])) * mean


@register("adopt")
@dataclass(frozen=True, kw_only=True)
class ADOPT(ScheduledRival):
    """ADOPT: Adam that converges with any β₂; its lr must be chosen as Adam's. The first step only measures.

    Args:
        lr: peak lr (1e-3).
        schedule: cosine by default, and 5 % warm-up, as one would run AdamW.
        betas: (0.9, 0.9999), the package's and the paper's.
    """

    tunes_lr: ClassVar[bool] = False
    package: ClassVar[str] = "pytorch-optimizer"
    module: ClassVar[str] = "pytorch_optimizer"

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.9999)
    schedule: str = "cosine"
    warmup: float = 0.05

    def _optimizer(self, groups: list[dict[str, Any]], horizon: int) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self._imported().ADOPT(
            groups, lr=self.lr, betas=self.betas, weight_decouple=True
        )
        return optimizer
