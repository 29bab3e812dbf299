"""MetaOptimize as a strategy: warm-up, step size adapted in-run, linear cooldown (arXiv 2402.02342)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from metaopt_hpo.optim import AdamW, MetaOptimize
from metaopt_hpo.optim.blocks import BlockSpec
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


SHORT_SIGHT = 2.0
"""How far below the best peak rate of a cooled-down run the adapted step size settles: learned, not derived.
Minimising near losses shrinks a step size, because noise hurts at once and progress pays later ("short-horizon
bias", Wu et al. 2018, arXiv 1803.02021). On byte-level transformers of three widths the ratio was 1.6 to 2.4."""


@register("metaoptimize")
@dataclass(frozen=True, kw_only=True)
class MetaOptimizeStrategy(LRStrategy):
    """Learning rate found during the run by MetaOptimize; it leaves the search space.

    The run has three parts: *find* adapts the step size, under a rising ramp at first; *hold* commits to what
    was found, times `correction`; *cooldown* lowers it linearly to zero.

    Args:
        lr: initial step size α₀. A factor of a thousand too low costs little; a factor of three too high
            without warm-up costs more (default 1e-3).
        meta: rule of the meta update: "sgd", "adam", "rmsprop" or "lion".
        meta_lr: step size η of the meta update. None follows the horizon: 20 / steps, held within
            [1e-3, 5e-2]; the paper's 1e-3 is far too slow for runs of a few thousand steps.
        gamma: discount γ of the eligibility trace (1 in the paper for stationary tasks).
        blocks: which weights share a step size: "scalar", "layer", "tensor", "weight", or a function
            from a parameter's name to its block's.
        warmup: fraction of the run over which the step size is multiplied by a rising ramp.
        find: fraction of the run after which the step size is committed to: its geometric mean over the last
            third of that time, times `correction`. 1 keeps adapting until the cooldown.
        correction: factor on the committed step size, against the short-horizon bias (default 2; see
            `SHORT_SIGHT`).
        cooldown: fraction of the run at its end over which the step size is multiplied by a falling ramp.
    """

    tunes_lr: ClassVar[bool] = True

    meta: str = "adam"
    meta_lr: float | None = None
    gamma: float = 1.0
    blocks: BlockSpec = "scalar"
    warmup: float = 0.1
    find: float = 0.3
    correction: float = SHORT_SIGHT
    cooldown: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.meta_lr is not None and self.meta_lr != 0:
            check_positive(self, "meta_lr")
        check_positive(self, "correction")
        check_fraction(self, "warmup", "find", "cooldown")

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
    """A run under MetaOptimize: find, hold, cool down."""

    optimizer: MetaOptimize

    def __init__(self, strategy: MetaOptimizeStrategy, optimizer: MetaOptimize, horizon: int) -> None:
        super().__init__(optimizer, horizon=horizon, max_grad_norm=strategy.max_grad_norm)
        self._strategy = strategy
        self._factor = 1.0
        self._warmup_steps = round(strategy.warmup * horizon)
        self._cooldown_steps = round(strategy.cooldown * horizon)
        stable = horizon - self._cooldown_steps
        self._commit_step = min(stable, max(1, round(strategy.find * horizon)))
        self._corrected = strategy.find < 1 and strategy.horizon_meta_lr(horizon) > 0
        self._average_from = self._commit_step - max(1, self._commit_step // 3)
        self._log_sum: Tensor | None = None

    def _before_step(self, step: int, loss: Tensor | None) -> None:
        step = min(step, self.horizon - 1)
        ramp = warmup_factor(step, self._warmup_steps)
        self._factor = ramp * cooldown_factor(step, self.horizon, self._cooldown_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self._strategy.lr * self._factor
        if self._average_from <= step < self._commit_step:
            logs = self.optimizer.step_sizes().log()
            self._log_sum = logs if self._log_sum is None else self._log_sum + logs
        if step == self._commit_step:
            self._commit()

    def _commit(self) -> None:
        self.optimizer.meta_lr = 0.0
        if self._corrected and self._log_sum is not None:
            mean = self._log_sum / (self._commit_step - self._average_from)
            self.optimizer.set_step_size(mean.exp() * self._strategy.correction)

    def step_sizes(self) -> Tensor:
        """Step sizes of the last step, ramps included: one value a block."""
        return self.optimizer.step_sizes() * self._factor

    def _extra_state(self) -> dict[str, Any]:
        return {"meta_lr": self.optimizer.meta_lr, "factor": self._factor, "log_sum": self._log_sum}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        self.optimizer.meta_lr = float(state["meta_lr"])
        self._factor = float(state["factor"])
        self._log_sum = state["log_sum"]
