"""Learning-rate schedules as strategies: constant, cosine, linear and warm-up–stable–decay (WSD).

Every schedule is a multiplier of the peak `lr`, a pure function of the fraction of the run that is done, so
that it scales with the horizon. Sources: cosine, Loshchilov & Hutter 2017 (arXiv 1608.03983); WSD, Hu et al.
2024 (arXiv 2404.06395), with the linear cooldown of Hägele et al. 2024 (arXiv 2405.18392).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metaopt_hpo.optim import MetaOptimize
from metaopt_hpo.optim.rules import BASE_RULES
from metaopt_hpo.strategies.base import LRRun, LRStrategy
from metaopt_hpo.strategies.checks import check_fraction, check_horizon
from metaopt_hpo.strategies.groups import decay_groups
from metaopt_hpo.strategies.registry import register


def warmup_factor(step: int, warmup_steps: int) -> float:
    """Linear warm-up multiplier of step `step` (0-based): 1/w, 2/w, …, 1."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0


def cooldown_factor(step: int, horizon: int, cooldown_steps: int) -> float:
    """Linear cooldown multiplier: 1 until the last `cooldown_steps`, then falling; the last step is 1/c."""
    return min(1.0, (horizon - step) / cooldown_steps) if cooldown_steps > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class Schedule(LRStrategy):
    """A fixed multiplier of the peak lr over the run.

    Args:
        warmup: fraction of the run over which lr rises linearly from near 0 (default 0.05).
    """

    bases: ClassVar[tuple[str, ...]] = tuple(dict.fromkeys(("adamw", *BASE_RULES)))

    warmup: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "warmup")

    def multiplier(self, step: int, horizon: int) -> float:
        """Factor on the peak lr for step `step` (0-based) of `horizon`."""
        return warmup_factor(step, round(self.warmup * horizon)) * self._shape(step, horizon)

    def _shape(self, step: int, horizon: int) -> float:
        return 1.0

    def build(self, model: nn.Module | Iterable[nn.Parameter], horizon: int) -> LRRun:
        groups = decay_groups(model, self.weight_decay)
        optimizer: torch.optim.Optimizer
        if self.base == "adamw":
            optimizer = torch.optim.AdamW(
                groups, lr=self.lr, betas=self.betas, eps=1e-8, fused=_fusable(groups)
            )
        elif self.base not in ("sgd", "sgdm"):
            # torch has no such rule with decoupled decay; ours with the meta step at zero is a plain optimizer
            optimizer = MetaOptimize(groups, lr=self.lr, base=self.base, meta="sgd", meta_lr=0.0)
        else:
            momentum = self.betas[0] if self.base == "sgdm" else 0.0
            optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=momentum)
        return ScheduleRun(self, optimizer, check_horizon(horizon))


class ScheduleRun(LRRun):
    """A run whose lr follows a `Schedule`."""

    def __init__(self, schedule: Schedule, optimizer: torch.optim.Optimizer, horizon: int) -> None:
        super().__init__(optimizer, horizon=horizon, max_grad_norm=schedule.max_grad_norm)
        self._schedule, self._peak = schedule, schedule.lr

    @property
    def ends_low(self) -> bool:
        peak = self._schedule.multiplier(self.horizon // 2, self.horizon)
        return self._schedule.multiplier(self.horizon - 1, self.horizon) < 0.5 * peak

    def _before_step(self, step: int, loss: Tensor | None) -> None:
        # past the horizon the schedule stays where it ended
        factor = self._schedule.multiplier(min(step, self.horizon - 1), self.horizon)
        for group in self.optimizer.param_groups:
            group["lr"] = self._peak * factor


@register("constant")
@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """Warm-up, then a constant lr."""


@register("cosine")
@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Warm-up, then half a cosine from the peak to `final` times the peak.

    Args:
        final: lr at the end over the peak (default 0, which is best for the final loss).
    """

    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "final")

    def _shape(self, step: int, horizon: int) -> float:
        w = round(self.warmup * horizon)
        t = max(0, step - w) / max(1, horizon - w)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * t))


@register("linear")
@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """Warm-up, then a straight line from the peak to zero."""

    def _shape(self, step: int, horizon: int) -> float:
        return cooldown_factor(step, horizon, horizon - round(self.warmup * horizon))


@register("wsd")
@dataclass(frozen=True, kw_only=True)
class WSD(Schedule):
    """Warm-up, stable plateau, linear decay.

    Args:
        cooldown: fraction of the run spent decaying linearly to zero (default 0.3).
    """

    cooldown: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "cooldown")

    @property
    def comparable_from(self) -> float:
        """Its end: until lr has decayed, the loss lies above that of schedules that decay all along."""
        return 1.0 if self.cooldown > 0 else 0.0

    def _shape(self, step: int, horizon: int) -> float:
        return cooldown_factor(step, horizon, round(self.cooldown * horizon))


def _fusable(groups: list[dict[str, Any]]) -> bool:
    tensors = [p[1] if isinstance(p, tuple) else p for g in groups for p in g["params"]]
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in tensors)
