"""MetaOptimize as a strategy: warm-up, step size adapted in-run, linear cooldown (arXiv 2402.02342)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from metaopt_hpo.optim import AdamW, MetaOptimize
from metaopt_hpo.strategies.base import (
    LRRun,
    LRStrategy,
    check_fraction,
    check_horizon,
    check_positive,
    decay_groups,
)
from metaopt_hpo.strategies.registry import register
from metaopt_hpo.strategies.schedules import cooldown_factor, warmup_factor

LOG_TRAVEL = 20.0
"""How far ln α may move in one run, nats, when `meta_lr` is not given: meta-Adam moves it by at most about
meta_lr a step, and twenty nats span every start from 1e-8 to 1."""


@register("metaoptimize")
@dataclass(frozen=True, kw_only=True)
class MetaOptimizeStrategy(LRStrategy):
    """Learning rate found during the run by MetaOptimize; it leaves the search space.

    Args:
        lr: initial step size α₀. A factor of a thousand too low costs little; a factor of three too high
            without warm-up costs more (default 1e-3).
        meta: rule of the meta update: "sgd", "adam", "rmsprop" or "lion".
        meta_lr: step size η of the meta update. None follows the horizon: 20 / steps, held within
            [1e-3, 5e-2]; the paper's 1e-3 is far too slow for runs of a few thousand steps.
        gamma: discount γ of the eligibility trace (1 in the paper for stationary tasks).
        blocks: which weights share a step size: "scalar", "layer", "tensor", "weight" or a function.
        warmup: fraction of the run over which the step size is multiplied by a rising ramp.
        cooldown: fraction of the run at its end over which it is multiplied by a falling ramp.
        adapt_in_cooldown: keep adapting β while cooling down. Off by default: the meta gradient then works
            against the ramp.
    """

    tunes_lr: ClassVar[bool] = True

    meta: str = "adam"
    meta_lr: float | None = None
    gamma: float = 1.0
    blocks: str = "scalar"
    warmup: float = 0.1
    cooldown: float = 0.3
    adapt_in_cooldown: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.meta_lr is not None and self.meta_lr != 0:
            check_positive(self, "meta_lr")
        check_fraction(self, "warmup", "cooldown")

    def horizon_meta_lr(self, horizon: int) -> float:
        """η in force for a run of `horizon` steps."""
        if self.meta_lr is not None:
            return self.meta_lr
        return min(5e-2, max(1e-3, LOG_TRAVEL / horizon))

    def build(self, model: nn.Module | Iterable[nn.Parameter], horizon: int) -> LRRun:
        horizon = check_horizon(horizon)
        optimizer = MetaOptimize(
            decay_groups(model, self.weight_decay),
            lr=self.lr,
            base=AdamW(betas=self.betas) if self.base == "adamw" else self.base,
            meta=self.meta,
            meta_lr=self.horizon_meta_lr(horizon),
            gamma=self.gamma,
            blocks=self.blocks,
        )
        return MetaOptimizeRun(self, optimizer, horizon)


class MetaOptimizeRun(LRRun):
    """A run under MetaOptimize, its lr multiplied by a warm-up and a cooldown ramp."""

    optimizer: MetaOptimize

    def __init__(self, strategy: MetaOptimizeStrategy, optimizer: MetaOptimize, horizon: int) -> None:
        super().__init__(optimizer, horizon=horizon, max_grad_norm=strategy.max_grad_norm)
        self._strategy = strategy
        self._factor = 1.0
        self._warmup_steps = round(strategy.warmup * horizon)
        self._cooldown_steps = round(strategy.cooldown * horizon)

    def _before_step(self, step: int, loss: Tensor | None) -> None:
        step = min(step, self.horizon - 1)
        ramp = warmup_factor(step, self._warmup_steps)
        self._factor = ramp * cooldown_factor(step, self.horizon, self._cooldown_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self._strategy.lr * self._factor
        if step == self.horizon - self._cooldown_steps and not self._strategy.adapt_in_cooldown:
            self.optimizer.meta_lr = 0.0

    def step_sizes(self) -> Tensor:
        """Step sizes of the last step, ramps included: one value a block."""
        return self.optimizer.step_sizes() * self._factor

    def _extra_state(self) -> dict[str, Any]:
        return {"meta_lr": self.optimizer.meta_lr, "factor": self._factor}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        self.optimizer.meta_lr = float(state["meta_lr"])
        self._factor = float(state["factor"])
