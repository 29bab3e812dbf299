"""MetaOptimize as a strategy: one run, started anywhere, instead of a grid of runs (arXiv 2402.02342)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from metaopt_hpo.optim import AdamW, MetaOptimize
from metaopt_hpo.optim.blocks import BlockSpec
from metaopt_hpo.optim.rules import Rule, base_rule
from metaopt_hpo.strategies.base import (
    LRRun,
    LRStrategy,
    check_fraction,
    check_horizon,
    check_positive,
    decay_groups,
)
from metaopt_hpo.strategies.guard import Guard
from metaopt_hpo.strategies.registry import register
from metaopt_hpo.strategies.schedules import cooldown_factor, warmup_factor
from metaopt_hpo.strategies.start import relative_step

LOG_TRAVEL = 20.0
"""How far ln α may move in one run, nats, when `meta_lr` is not given: meta-Adam moves it by at most about
meta_lr a step, and twenty nats span every start from 1e-8 to 1."""

META_LR_BOUNDS = (1e-3, 5e-2)
"""The paper's η below; above, momentum would carry α past what z asks for before z can object."""

SHORT_SIGHT = 2.0
"""How far below the best peak rate of a cooled-down run the adapted step size settles: learned, on byte-level
transformers of widths 24, 48 and 96, and in line with a rough derivation (see `MetaOptimizeStrategy`). The study varies
it (`metaopt-hpo study`, "correction")."""

GUARD_WINDOWS = 100
"""Windows of the guard in a run; one is at least `LEAST_WINDOW` steps."""

LEAST_WINDOW = 5


@register("metaoptimize")
@dataclass(frozen=True, kw_only=True)
class MetaOptimizeStrategy(LRStrategy):
    """Learning rate found during the run by MetaOptimize; it leaves the search space.

    The run has three parts. *Find* adapts the step size, under a rising ramp at first. *Hold* commits to its
    geometric mean over the last third of that time, times `correction`. *Cooldown* lowers it linearly to zero.

    Why a correction: the trace weighs the loss at hand, where noise hurts at once and progress pays later
    ("short-horizon bias", Wu et al. 2018, arXiv 1803.02021). With A/(αt)^p the loss still to go after t steps and Bα
    the noise, the step size that is best for the loss now grows as t^(−p/(1+p)). A run of T steps that ends in a
    cooldown, which leaves a fraction κ of the noise, wants (κ⁻¹ (t/T)^p)^(1/(1+p)) times as much: 1.9 at t = T/5
    for p = 1/2 and κ = 1/6. This is heuristic (one power law, one noise); the default, 2, is what was learned.

    Args:
        lr: where to start. A start above `limit` is taken at the limit, so that none can do damage; one below
            doubles every step until it is there, while the ramp is still low. So the start hardly matters; give
            `expected` to say what you know.
        expected: the peak rate that a law predicts for this run, e.g. `law.predict(...).lr.value`; the search is then
            confined to a factor `within` around it, and `lr` is not used. None starts from nothing.
        within: how far from `expected` the run may go, a factor; take it from the prediction's interval.
        meta: rule of the meta update: "sgd", "adam", "rmsprop" or "lion".
        meta_betas: of meta-Adam, (0.5, 0.95). A memory of two steps for z and of twenty for its size, not the
            paper's ten and thousand: the climb has a few dozen steps, in which z grows with α, and momentum would
            carry α past the point where z turns.
        meta_lr: step size η of the meta update. None follows the horizon: 20 / steps, held within [1e-3, 5e-2]; the
            paper's 1e-3 is far too slow for runs of a few thousand steps. 0 adapts nothing: a plain schedule from
            `lr`.
        gamma: discount γ of the eligibility trace (1 in the paper for stationary tasks).
        blocks: which weights share a step size: "scalar", "layer", "tensor", "weight", or a function
            from a parameter's name to its block's.
        limit: the largest first step, as RMS of an update over RMS of the weights (median over matrices), before the
            ramp. 0.01 is below what damages a fresh network and, under the ramp, above what wastes time. None
            takes `lr` as it is, which suits fine-tuning, where even the limit may be too much.
        warmup: fraction of the run over which the step size is multiplied by a rising ramp.
        find: fraction of the run after which the step size is committed to. 1 keeps adapting until the cooldown.
        correction: factor on the committed step size (see above).
        cooldown: fraction of the run at its end over which the step size is multiplied by a falling ramp.
        guard: bring the run back to its last good weights, with half the step size, when the training loss loses
            more than half of its progress or is not finite. Costs a copy of weights and optimizer state in host
            memory, and needs the loss in `step(loss)`; without it nothing is watched. Switch it off where the loss may
            jump with the data, as in a stream of tasks.
    """

    tunes_lr: ClassVar[bool] = True

    expected: float | None = None
    within: float = 2.0
    meta: str = "adam"
    meta_betas: tuple[float, float] = (0.5, 0.95)
    meta_lr: float | None = None
    gamma: float = 1.0
    blocks: BlockSpec = "scalar"
    limit: float | None = 0.01
    warmup: float = 0.1
    find: float = 0.2
    correction: float = SHORT_SIGHT
    cooldown: float = 0.3
    guard: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.meta_lr is not None and self.meta_lr != 0:
            check_positive(self, "meta_lr")
        if self.limit is not None:
            check_positive(self, "limit")
        if self.expected is not None:
            check_positive(self, "expected")
        if not (math.isfinite(self.within) and self.within > 1):
            raise ValueError(
                f"within is a factor around the expected lr and must be > 1, got {self.within!r}"
            )
        if len(tuple(self.meta_betas)) != 2 or not all(0 <= b < 1 for b in self.meta_betas):
            raise ValueError(f"meta_betas must be two numbers in [0, 1), got {self.meta_betas!r}")
        object.__setattr__(self, "meta_betas", tuple(self.meta_betas))
        check_positive(self, "correction")
        check_fraction(self, "warmup", "find", "cooldown")

    def horizon_meta_lr(self, horizon: int) -> float:
        """η in force for a run of `horizon` steps."""
        if self.meta_lr is not None:
            return self.meta_lr
        low, high = META_LR_BOUNDS
        return min(high, max(low, LOG_TRAVEL / horizon))

    def start(self) -> tuple[float, tuple[float, float] | None]:
        """α₀ before any limit, and the bounds of β: the low end of what a law expects, approached from below."""
        if self.expected is None:
            return self.lr, None
        low, high = (self.expected / self.correction * f for f in (1 / self.within, self.within))
        return low, (math.log(low), math.log(high))

    def base_rule(self) -> Rule:
        """The base rule with this strategy's coefficients."""
        return AdamW(betas=self.betas) if self.base == "adamw" else base_rule(self.base)

    def build(self, model: nn.Module | Iterable[nn.Parameter], horizon: int) -> LRRun:
        horizon = check_horizon(horizon)
        model = model if isinstance(model, nn.Module) else list(model)
        start, bounds = self.start()
        optimizer = MetaOptimize(
            decay_groups(model, self.weight_decay),
            lr=start,
            base=self.base_rule(),
            meta=AdamW(betas=self.meta_betas) if self.meta == "adam" else self.meta,
            meta_lr=self.horizon_meta_lr(horizon),
            gamma=self.gamma,
            blocks=self.blocks,
            beta_bounds=bounds,
        )
        return MetaOptimizeRun(self, optimizer, horizon, model)


class MetaOptimizeRun(LRRun):
    """A run under MetaOptimize: find, hold, cool down; and back, where the loss says so."""

    optimizer: MetaOptimize

    def __init__(
        self,
        strategy: MetaOptimizeStrategy,
        optimizer: MetaOptimize,
        horizon: int,
        model: nn.Module | list[nn.Parameter],
    ) -> None:
        super().__init__(optimizer, horizon=horizon, max_grad_norm=strategy.max_grad_norm)
        self._strategy = strategy
        self._lr = float(optimizer.defaults["lr"])
        self._factor = 1.0
        self._warmup_steps = round(strategy.warmup * horizon)
        self._cooldown_steps = round(strategy.cooldown * horizon)
        stable = horizon - self._cooldown_steps
        self._commit_step = min(stable, max(1, round(strategy.find * horizon)))
        self._meta_lr = strategy.horizon_meta_lr(horizon)
        self._corrected = strategy.find < 1 and self._meta_lr > 0
        self._limited = strategy.limit is not None and strategy.expected is None and self._meta_lr > 0
        self._limit = math.inf
        """Largest first step size; known from the first gradients on."""
        self._average_from = self._commit_step - max(1, self._commit_step // 3)
        self._log_sum: Tensor | None = None
        self._committed: Tensor | None = None
        window = max(LEAST_WINDOW, horizon // GUARD_WINDOWS)
        self.guard = Guard(model, optimizer, window) if strategy.guard else None

    def step(self, loss: Tensor | None = None) -> None:
        """See `LRRun.step`; a step on which the guard brings the run back takes no update."""
        if self.guard is not None and loss is not None and self.guard.look(loss):
            self._slow_down(0.5**self.guard.returns)
            self.optimizer.zero_grad(set_to_none=True)
            self.steps_taken += 1
            return
        super().step(loss)

    def _slow_down(self, factor: float) -> None:
        """After a return: a fraction of the step size the snapshot had, or of the one committed to since."""
        if self._committed is None:
            self.optimizer.scale_step_size(factor)
            if self._log_sum is not None:  # what was averaged so far belongs to a run that went wrong
                count = max(0, min(self.steps_taken, self._commit_step) - self._average_from)
                self._log_sum = self.optimizer.step_sizes().log() * count
        else:
            self._committed = self._committed * 0.5
            self.optimizer.set_step_size(self._committed)

    def _before_step(self, step: int, loss: Tensor | None) -> None:
        step = min(step, self.horizon - 1)
        ramp = warmup_factor(step, self._warmup_steps)
        self._factor = ramp * cooldown_factor(step, self.horizon, self._cooldown_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr * self._factor
        self.optimizer.meta_lr = self._meta_lr if step < self._commit_step else 0.0
        if self._average_from <= step < self._commit_step:
            logs = self.optimizer.step_sizes().log()
            self._log_sum = logs if self._log_sum is None else self._log_sum + logs
        elif step >= self._commit_step and self._committed is None and self._corrected:
            self._commit()

    def _commit(self) -> None:
        if self._log_sum is None:
            return
        mean = self._log_sum / (self._commit_step - self._average_from)
        self._committed = mean.exp() * self._strategy.correction
        self.optimizer.set_step_size(self._committed)

    def _before_update(self, step: int) -> None:
        if not self._limited:
            return
        if step == 0 and self._strategy.limit is not None:
            params = [p for group in self.optimizer.param_groups for p in group["params"]]
            self._limit = self._strategy.limit * relative_step(params, self._strategy.base_rule().as_base())
            if self._lr > self._limit:
                self.optimizer.set_step_size(self._limit)
        elif self._lr * 2.0 ** (step - 1) < self._limit < math.inf:
            floor = min(self._limit, self._lr * 2.0**step)
            self.optimizer.set_step_size(self.optimizer.step_sizes().clamp(min=floor))

    def step_sizes(self) -> Tensor:
        """Step sizes of the last step, ramps included: one value a block."""
        return self.optimizer.step_sizes() * self._factor

    def _extra_state(self) -> dict[str, Any]:
        return {
            "meta_lr": self.optimizer.meta_lr,
            "factor": self._factor,
            "limit": self._limit,
            "log_sum": self._log_sum,
            "committed": self._committed,
            "guard": None if self.guard is None else self.guard.state_dict(),
        }

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        self.optimizer.meta_lr = float(state["meta_lr"])
        self._factor, self._limit = float(state["factor"]), float(state["limit"])
        self._log_sum, self._committed = state["log_sum"], state["committed"]
        if self.guard is not None and state["guard"] is not None:
            self.guard.load_state_dict(state["guard"])
