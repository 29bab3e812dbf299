"""A run under the `metaoptimize` strategy: find, hold, cool down; and back, where the loss says so."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaopt_hpo.optim import MetaOptimize, host
from metaopt_hpo.optim.outside_graphs import outside_graphs
from metaopt_hpo.optim.traces import HESSIAN_FREE
from metaopt_hpo.strategies.balance import Balance, measurement, set_anchor, shrunk, trace_product
from metaopt_hpo.strategies.base import LRRun, StrategyError
from metaopt_hpo.strategies.checks import scalar
from metaopt_hpo.strategies.correction import normalises, prior_correction
from metaopt_hpo.strategies.guard import Guard
from metaopt_hpo.strategies.kinds import follows_gradient_size, memory, slowness
from metaopt_hpo.strategies.metaoptimize_options import MetaOptimizeOptions
from metaopt_hpo.strategies.plateau import Plateau
from metaopt_hpo.strategies.schedules import cooldown_factor, warmup_factor
from metaopt_hpo.strategies.start import relative_step

GUARD_WINDOWS = 100
"""Windows of the guard in a run; one is at least `LEAST_WINDOW` steps."""

LEAST_WINDOW = 5

BELOW = 16.0
"""A start further below the limit than this is taken at this fraction of it: four doublings away."""

TINY = 1e-12
"""Step size while there is no gradient to measure a limit with."""


class MetaOptimizeRun(LRRun):
    """One run; `MetaOptimizeStrategy` says what its parts are."""

    optimizer: MetaOptimize

    def __init__(
        self,
        strategy: MetaOptimizeOptions,
        optimizer: MetaOptimize,
        horizon: int,
        model: nn.Module | list[nn.Parameter],
    ) -> None:
        super().__init__(optimizer, horizon=horizon, max_grad_norm=strategy.max_grad_norm)
        self._strategy = strategy
        self._lr = float(optimizer.defaults["lr"])
        self._factor = 1.0
        self._warmup_steps = round(strategy.ramp() * horizon)
        self._cooldown_steps = round(strategy.cooldown * horizon)
        stable = horizon - self._cooldown_steps
        find = strategy.horizon_find(horizon)
        self._commit_step = min(stable, max(1, round(find * horizon)))
        self._meta_lr = strategy.horizon_meta_lr(horizon)
        self._corrected = find < 1 and (self._meta_lr > 0 or strategy.trusts_law)
        self._limited = strategy.limit is not None and strategy.expected is None and self._meta_lr > 0
        self._limit = math.nan if self._limited else math.inf
        """Largest first step size; NaN until the first gradients that did not overflow."""
        rule = strategy.base_rule()
        self._correction = 1.0
        if strategy.correction is not None:
            self._correction = strategy.correction
        elif not strategy.trusts_law:
            self._correction = prior_correction(horizon, find, rule, model)
        self._balance: Balance | None = None
        """A measurement still to come, or under way."""
        if (
            strategy.trusts_law
            and strategy.correction is None
            and not normalises(model)
            and not self.needs_graph
            and find + strategy.measure < 1 - strategy.cooldown
        ):
            self._balance = measurement(horizon, find, strategy.measure, memory(rule))
        self._bounds_gradient = self._meta_lr > 0 and not self.needs_graph and follows_gradient_size(rule)
        """Whether, without a `max_grad_norm`, gradients are clipped to the norm of the first one."""
        self._slowed = slowness(rule) < 1
        """Whether the search is so slow that a climb says nothing, and a longer one overshoots (over Lion)."""
        self._climbs = 0
        """Steps in which the step size may still be doubled towards the limit."""
        self._average_from = self._commit_step - max(1, self._commit_step // 2)
        self._plateau = Plateau(horizon, self._commit_step) if self._corrected else None
        """None where nothing is committed to."""
        self._log_sum: Tensor | None = None
        self._committed: Tensor | None = None
        self._loss: Tensor | None = None
        self._directions: dict[Tensor, Tensor] = {}
        """Directions of the coming update, where an optimizer that is no rule of ours says them."""
        window = max(LEAST_WINDOW, horizon // GUARD_WINDOWS)
        self.guard = Guard(model, optimizer, window) if strategy.guard else None
        self.listens_to = model if strategy.guard and isinstance(model, nn.Module) else None

    @property
    def ends_low(self) -> bool:
        return self._cooldown_steps > 0

    @property
    def needs_graph(self) -> bool:
        return self._strategy.trace != HESSIAN_FREE

    def forward(self) -> AbstractContextManager[Any]:
        # fused attention has no second derivative
        return sdpa_kernel(SDPBackend.MATH) if self.needs_graph else nullcontext()

    @outside_graphs
    def step(self, loss: Tensor | None = None, *, scaler: torch.amp.GradScaler | None = None) -> None:
        """See `LRRun.step`; a step on which the guard brings the run back takes no update."""
        loss = scalar(loss, self.optimizer.param_groups[0]["params"][0].device)
        if self.guard is not None and loss is not None and self.guard.refuses(loss):
            self._skip()
        elif self.guard is not None and loss is not None and self.guard.look(loss):
            self.guard.say_if_given_up()
            self._slow_down(0.5**self.guard.returns)
            self._balance = None  # what was seen of the loss belongs to weights that are gone
            self._skip()
        elif self.needs_graph:
            self._say_if_past_horizon()
            self._step_with_graph(loss, scaler)
        else:
            super().step(loss, scaler=scaler)

    def _measure_and_clip(self) -> None:
        super()._measure_and_clip()
        if self._bounds_gradient and self.max_grad_norm is None and self.grad_norm is not None:
            norm = host.read([self.grad_norm])[0]
            self.max_grad_norm = norm if 0 < norm < math.inf else None

    def _step_with_graph(self, loss: Tensor | None, scaler: torch.amp.GradScaler | None) -> None:
        if scaler is not None:
            raise StrategyError(
                f"trace={self._strategy.trace!r} cannot be used with a loss scale: train in float32 or bfloat16"
            )
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        if loss is None or not loss.requires_grad or any(p.grad is not None for p in params):
            raise StrategyError(
                f"trace={self._strategy.trace!r} differentiates the gradient: call step(loss) with the loss of the "
                "whole batch, computed inside run.forward(), and do not call backward()"
            )
        self._before_step(self.steps_taken, loss)
        if math.isnan(self._limit):
            grads = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
            for p, g in zip(params, grads, strict=True):
                p.grad = g
            self._measure_and_clip()
        self._before_update(self.steps_taken)
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.step(lambda: loss)
        self.grad_norm = nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_taken += 1

    def _slow_down(self, factor: float) -> None:
        """After a return: a fraction of the step size the snapshot had, or of the one committed to since."""
        if self._committed is None:
            self.optimizer.scale_step_size(factor)
            if self._log_sum is not None:  # what was averaged so far belongs to a run that went wrong
                count = max(0, min(self.steps_taken, self._commit_step) - self._average_from)
                self._log_sum = self.step_sizes().log() * count
        else:
            self._committed = self._committed * 0.5
            self.optimizer.set_step_size(self._committed)

    def _before_step(self, step: int, loss: Tensor | None) -> None:
        step = min(step, self.horizon - 1)
        ramp = warmup_factor(step, self._warmup_steps)
        self._factor = ramp * cooldown_factor(step, self.horizon, self._cooldown_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr * self._factor * group.get("lr_multiplier", 1.0)
        if self._plateau is not None:
            self._put_off(step, loss, self._plateau)
        self.optimizer.meta_lr = self._meta_lr if step < self._commit_step else 0.0
        if self._average_from <= step < self._commit_step:
            # with the ramp: the meta-gradient answers to what the weights were moved by
            logs = self.step_sizes().log()
            self._log_sum = logs if self._log_sum is None else self._log_sum + logs
        elif step >= self._commit_step and self._committed is None and self._corrected:
            self._commit()
        self._loss = loss
        if self._balance is not None and self._committed is not None and self._balance.done(step):
            factor = shrunk(*self._balance.factor(), self._strategy.prior_spread)
            self._committed, self._balance = self._strategy.bounded(self._committed * factor), None
            self.optimizer.set_step_size(self._committed)
        if self._balance is not None and self._balance.anchors(step):
            set_anchor(self.optimizer)

    def _put_off(self, step: int, loss: Tensor | None, plateau: Plateau) -> None:
        """Go on adapting where a step size is to be committed to before the run has begun to learn."""
        plateau.see(step, loss, self._commit_step)
        if step != self._commit_step or self._committed is not None:
            return
        risen = None
        if self._log_sum is not None and self._meta_lr > 0 and not self._slowed:
            mean = self._log_sum / max(1, step - self._average_from)
            risen = (self.step_sizes().log() - mean).mean().exp()
        later = plateau.delay(step, self.horizon - self._cooldown_steps, risen)
        if later:
            self._commit_step, self._average_from, self._log_sum = step + later, step, None
            self._balance = None  # the loss falls as it does after a plateau, which says little of the rest

    def _commit(self) -> None:
        if self._log_sum is None:
            return
        mean = self._log_sum / (self._commit_step - self._average_from)
        self._committed = self._strategy.bounded(mean.exp() * self._correction)
        self.optimizer.set_step_size(self._committed)

    def _before_update(self, step: int) -> None:
        if self._balance is not None:
            product = trace_product(self.optimizer) if self._balance.wants_product(step) else None
            if product is not None and self.grad_norm is not None and self.max_grad_norm is not None:
                product = product * (self.grad_norm / self.max_grad_norm).clamp(min=1.0).to(product)
            self._balance.see(step, self._loss, self.step_sizes().log().mean().exp(), product)
        if self._limited:
            self._climb()

    def _climb(self) -> None:
        """Start within a factor `BELOW` of the limit, and double up to it while the meta-gradient does not object."""
        if math.isnan(self._limit):
            assert self._strategy.limit is not None
            groups = self.optimizer.param_groups
            params = [p for group in groups for p in group["params"]]
            names = {
                p: n for g in groups for n, p in zip(g.get("param_names", ()), g["params"], strict=False)
            }
            rule = self._strategy.base_rule().as_base()
            limit = self._strategy.limit * slowness(rule)
            limit *= relative_step(params, rule, names, self._directions)
            if limit < math.inf:
                self._limit, self._climbs = limit, 2 * round(math.log2(BELOW))
            # no gradient yet: nothing to learn from, and decay alone must not act
            self.optimizer.set_step_size(
                min(max(self._lr, limit / BELOW), limit) if limit < math.inf else TINY
            )
        elif self._climbs > 0:
            self._climbs -= 1
            sizes = self.optimizer.step_sizes()
            above = (2 * sizes).clamp(max=self._limit)
            slope = self.optimizer.param_groups[0].get("meta_m")
            if slope is not None:
                above = torch.where(slope <= 0, above, sizes)
            self.optimizer.set_step_size(torch.maximum(sizes, above))

    def step_sizes(self) -> Tensor:
        """Step sizes of the last step, ramps included: one value a block."""
        return self.optimizer.step_sizes() * self._factor

    @property
    def found_lr(self) -> float | None:
        """The learning rate found: what the run committed to (geometric mean over blocks), None before it has."""
        return None if self._committed is None else float(self._committed.double().log().mean().exp())

    def group_step_sizes(self) -> Tensor:
        return torch.stack([g["step_size"].double().log().mean().exp() for g in self.optimizer.param_groups])

    def small_state(self) -> dict[str, Any]:
        guard = None if self.guard is None else self.guard.state_dict(snapshot=False)
        return {**super().small_state(), "guard": guard}

    def _extra_state(self) -> dict[str, Any]:
        return {
            "meta_lr": self.optimizer.meta_lr,
            "factor": self._factor,
            "limit": self._limit,
            "max_grad_norm": self.max_grad_norm,
            "climbs": self._climbs,
            "log_sum": self._log_sum,
            "committed": self._committed,
            "commit_step": self._commit_step,
            "average_from": self._average_from,
            "plateau": None if self._plateau is None else self._plateau.state_dict(),
            "balance": None if self._balance is None else self._balance.state_dict(),
            "guard": None if self.guard is None else self.guard.state_dict(),
        }

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        self.optimizer.meta_lr = float(state["meta_lr"])
        self._factor, self._limit = float(state["factor"]), float(state["limit"])
        self._climbs = int(state.get("climbs", 0))
        self.max_grad_norm = state.get("max_grad_norm", self.max_grad_norm)
        here = self.optimizer.param_groups[0]["beta"].device  # checkpoints are loaded to the host
        self._log_sum, self._committed = (
            None if state[name] is None else state[name].to(here) for name in ("log_sum", "committed")
        )
        self._commit_step = int(state.get("commit_step", self._commit_step))
        self._average_from = int(state.get("average_from", self._average_from))
        if self._plateau is not None and state.get("plateau") is not None:
            self._plateau.load_state_dict(state["plateau"])
        saved = state.get("balance", (state.get("balances") or [None])[-1])
        if self._balance is not None and saved is not None:
            self._balance.load_state_dict(saved)
        else:
            self._balance = None
        if self.guard is not None and state["guard"] is not None:
            self.guard.load_state_dict(state["guard"])
