"""MetaOptimize as a strategy: one run, started anywhere, instead of a grid of runs (arXiv 2402.02342)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from metaopt_hpo.optim import AdamW, MetaOptimize
from metaopt_hpo.optim.blocks import BlockSpec
from metaopt_hpo.optim.rules import BASE_RULES, Rule, base_rule
from metaopt_hpo.optim.traces import HESSIAN_FREE, TRACES
from metaopt_hpo.strategies.base import LRRun, LRStrategy
from metaopt_hpo.strategies.checks import check_fraction, check_horizon, check_positive
from metaopt_hpo.strategies.correction import find_fraction, warmup_fraction
from metaopt_hpo.strategies.groups import decay_groups
from metaopt_hpo.strategies.kinds import slowness
from metaopt_hpo.strategies.metaoptimize_run import MetaOptimizeRun
from metaopt_hpo.strategies.registry import register
from metaopt_hpo.strategies.shared_meta import SharedAdam
from metaopt_hpo.strategies.untried import say_if_untried

LOG_TRAVEL = 40.0
"""How far ln α may move in one run, nats, when `meta_lr` is not given: meta-Adam moves it by at most about
meta_lr a step, so a fifth of the run spans eight nats; at half that speed a GRU's step size was still rising there."""

META_LR_BOUNDS = (1e-3, 5e-2)
"""The paper's printed η below (its authors' code has units of its own, see `optim.presets.authors_units`); above,
momentum would carry α past what z asks for before z can object."""

HELD = 0.2
"""Fraction of a run that holds a law's rate before its measurement begins."""

Z90 = 1.645
"""Half the width of a 90 % interval, in standard deviations."""


@register("metaoptimize")
@dataclass(frozen=True, kw_only=True)
class MetaOptimizeStrategy(LRStrategy):
    """Learning rate found during the run by MetaOptimize; it leaves the search space.

    The run has three parts. *Adapt*: the step size follows the meta-gradient, under a rising ramp at first. *Hold*: it
    stays at the geometric mean over the second half of that time, times a correction. *Cooldown* lowers it linearly to
    zero. No step of the run is lost.

    Why a correction: the meta-gradient weighs the loss at hand, where noise hurts at once and progress pays later
    ("short-horizon bias", Wu et al. 2018, arXiv 1803.02021), so the adapted step size falls as the run goes on, below
    what a run that ends in a cooldown wants. `strategies.correction` says when the two are closest, and what is left.

    Args:
        lr: where to start. A start above `limit` is taken at the limit, so that none can do damage; one far below at
            a sixteenth of it, and doubled each step up to the limit while the meta-gradient does not object and the
            ramp is still low. So the start hardly matters; give `expected` to say what you know.
        expected: the peak rate that a law predicts for this run, e.g. `law.predict(...).lr.value`. The run starts
            there, and `lr` is not used; None starts from nothing. It does not adapt first, unless `meta_lr` is given: a
            meta-gradient asks for less at the best rate too (see above), and time lost below it costs more than it
            teaches. It measures at that rate how much the loss pays for noise and how fast it falls, and then moves it
            as far as the measurement is surer than the law (`strategies.balance`).
        within: how far from `expected` the run may go, a factor: the prediction's 90 % interval. The narrower it is,
            the less what the run measures counts beside it.
        meta: rule of the meta update: "sgd", "adam", "rmsprop" or "lion".
        meta_betas: of meta-Adam, (0.5, 0.95). A memory of two steps for z and of twenty for its size, not the
            paper's ten and thousand: the climb has a few dozen steps, in which z grows with α, and momentum would
            carry α past the point where z turns.
        meta_lr: step size η of the meta update. None follows the horizon: 40 / steps, held within [1e-3, 5e-2], a third
            of that over Lion (`kinds.slowness`), and 0 where a rate is expected; the paper's 1e-3 is far too slow for
            runs of a few thousand steps. 0 adapts and measures nothing: a plain schedule from `lr` or `expected`.
        gamma: discount γ of the eligibility trace (1 in the paper for stationary tasks).
        blocks: which weights share a step size: "scalar", "layer", "tensor", "weight", or a function
            from a parameter's name to its block's. Under meta-Adam the blocks move together and deviate slowly
            (`strategies.shared_meta`).
        trace: how the influence of past step sizes is followed: "hessian_free", or "l", "2x2" or "exact" with
            Hessian-vector products. Those take the loss before `backward()`, from a forward pass inside
            `run.forward()`, and cost several times a step (`make bench`); the study says what they bring.
        limit: the largest first step, as RMS of an update over RMS of the weights (median over matrices), before the
            ramp. 0.01 is below what damages a fresh network and, under the ramp, above what wastes time. None
            takes `lr` as it is, which suits fine-tuning, where even the limit may be too much.
        warmup: fraction of the run over which the step size is multiplied by a rising ramp. None takes a tenth, and
            half of that over a rule that takes only signs.
        find: fraction of the run after which the step size is committed to. None takes 0.12, but 100 steps at least,
            and no more than 0.2 (`correction.find_fraction`). 1 keeps adapting until the cooldown.
        measure: fraction of the run in which a run that holds an `expected` rate measures, from a fifth of it on.
        correction: factor on the adapted step size where it is committed to. None takes `correction.prior_correction`:
            1.9 at 250 steps, 0.9 from 1,000 on, twice that with BatchNorm.
        cooldown: fraction of the run at its end over which the step size is multiplied by a falling ramp.
        max_grad_norm: see `LRStrategy`. Where it is None, over a rule whose update grows with the gradient (SGD, with
            or without momentum), gradients are clipped to the norm of the first one: such a rule has no other bound.
        guard: bring the run back to its last good weights, with half the step size, when the training loss loses
            more than half of its progress or is not finite. Costs a copy of weights and optimizer state in host
            memory, and needs the loss in `step(loss)`; without it nothing is watched. Switch it off where the loss may
            jump with the data, as in a stream of tasks.
    """

    tunes_lr: ClassVar[bool] = True
    bases: ClassVar[tuple[str, ...]] = tuple(dict.fromkeys(("adamw", *BASE_RULES)))

    expected: float | None = None
    within: float = 2.0
    meta: str = "adam"
    meta_betas: tuple[float, float] = (0.5, 0.95)
    meta_lr: float | None = None
    gamma: float = 1.0
    blocks: BlockSpec = "scalar"
    trace: str = "hessian_free"
    limit: float | None = 0.01
    warmup: float | None = None
    find: float | None = None
    measure: float = 0.12
    correction: float | None = None
    cooldown: float = 0.3
    guard: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.meta_lr is not None and self.meta_lr != 0:
            check_positive(self, "meta_lr")
        if self.trace not in TRACES:
            raise ValueError(f"trace={self.trace!r} is not known: use one of {', '.join(TRACES)}")
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
        if self.correction is not None:
            check_positive(self, "correction")
        given = [name for name in ("warmup", "find") if getattr(self, name) is not None]
        check_fraction(self, "measure", "cooldown", *given)

    @property
    def trusts_law(self) -> bool:
        """Whether the run starts with a law's rate and measures, instead of adapting first."""
        return self.expected is not None and self.meta_lr is None

    @property
    def prior_spread(self) -> float:
        """Standard deviation of the logarithm of the best rate over the one that a law expects."""
        return math.log(self.within) / Z90

    def bounded(self, step_sizes: Tensor) -> Tensor:
        """Step sizes held within what a law expects, where one is given."""
        if self.expected is None:
            return step_sizes
        return step_sizes.clamp(self.expected / self.within, self.expected * self.within)

    def horizon_meta_lr(self, horizon: int) -> float:
        """η in force for a run of `horizon` steps."""
        if self.meta_lr is not None:
            return self.meta_lr
        if self.trusts_law:
            return 0.0
        low, high = META_LR_BOUNDS
        return min(high, max(low, slowness(self.base_rule()) * LOG_TRAVEL / horizon))

    def horizon_find(self, horizon: int) -> float:
        """Fraction of a run of `horizon` steps after which its step size is committed to."""
        if self.find is not None:
            return self.find
        return HELD if self.trusts_law else find_fraction(horizon, self.base_rule())

    def ramp(self) -> float:
        """Fraction of the run over which the step size is multiplied by a rising ramp."""
        return warmup_fraction(self.base_rule()) if self.warmup is None else self.warmup

    def start(self) -> tuple[float, tuple[float, float] | None]:
        """α₀ before any limit, and the bounds of β: the interval of what a law expects."""
        if self.expected is None:
            return self.lr, None
        return self.expected, (math.log(self.expected / self.within), math.log(self.expected * self.within))

    def base_rule(self) -> Rule:
        """The base rule with this strategy's coefficients."""
        return AdamW(betas=self.betas) if self.base == "adamw" else base_rule(self.base)

    def meta_rule(self) -> str | Rule:
        """The meta rule with this strategy's coefficients; Adam over several blocks holds them together."""
        if self.meta != "adam":
            return self.meta
        return AdamW(betas=self.meta_betas) if self.blocks == "scalar" else SharedAdam(betas=self.meta_betas)

    def build(self, model: nn.Module | Iterable[nn.Parameter], horizon: int) -> LRRun:
        horizon = check_horizon(horizon)
        model = model if isinstance(model, nn.Module) else list(model)
        optimizer = self.optimizer(decay_groups(model, self.weight_decay), horizon)
        return MetaOptimizeRun(self, optimizer, horizon, model)

    def optimizer(self, groups: list[dict[str, Any]], horizon: int) -> MetaOptimize:
        """The optimizer of a run over these parameter groups."""
        start, bounds = self.start()
        base = self.base_rule()
        if self.meta_lr != 0:
            say_if_untried(base)
        return MetaOptimize(
            groups,
            lr=start,
            base=base,
            meta=self.meta_rule(),
            meta_lr=self.horizon_meta_lr(horizon),
            gamma=self.gamma,
            blocks=self.blocks,
            beta_bounds=bounds,
            trace=self.trace,
            max_grad_norm=None if self.trace == HESSIAN_FREE else self.max_grad_norm,
        )
