"""Keep the optimizer you have, and let its learning rate be found: `wrap(optimizer, horizon)`.

The recipe stays: groups with their relative learning rates, betas, ε and momentum, weight decay in the form the
optimizer has it, and whatever clipping the loop does. Only the learning rate is set by MetaOptimize, as in the
`metaoptimize` strategy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from metaopt_hpo.errors import warn
from metaopt_hpo.optim.rules import AdamW, Rule
from metaopt_hpo.optim.traces import HESSIAN_FREE
from metaopt_hpo.strategies.any_optimizer import HOOKS, Directions
from metaopt_hpo.strategies.as_optimizer import LRSetTwice
from metaopt_hpo.strategies.base import LRRun, StrategyError
from metaopt_hpo.strategies.checks import check_horizon, close_to
from metaopt_hpo.strategies.errors import WrapError as WrapError
from metaopt_hpo.strategies.metaoptimize import MetaOptimizeStrategy
from metaopt_hpo.strategies.metaoptimize_run import MetaOptimizeRun
from metaopt_hpo.strategies.recipe import read
from metaopt_hpo.strategies.unfinished import watch
from metaopt_hpo.strategies.untried import say_if_untried

FROM_OPTIMIZER = ("base", "betas", "weight_decay", "lr", "rule")
"""Options of the strategy that the optimizer has already decided."""


def wrap(
    optimizer: torch.optim.Optimizer, horizon: int, model: nn.Module | None = None, **options: Any
) -> WrappedRun:
    """A run in which the learning rate of an existing optimizer is found; everything else of its recipe stays.

        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        run = wrap(optimizer, horizon=1000)
        for x, y in batches:                  # 1000 of them
            loss = loss_of(model(x), y)
            loss.backward()
            run.step(loss)                    # in the place of optimizer.step(); optimizer.zero_grad()

    Clip gradients between `backward()` and `step()` as before. For a framework that calls `optimizer.step()` itself
    use `run.as_optimizer()`. The optimizer's lr is where the search starts (it hardly matters, see
    `MetaOptimizeStrategy`); where its groups have different ones, their ratios are kept.

    Args:
        optimizer: before its first step; its own `step` must not be called again. torch.optim's AdamW, Adam (with its
            L2 decay), SGD (momentum, dampening, Nesterov) and RMSprop, and Lion of lion-pytorch or pytorch-optimizer
            are computed here. Any other whose update is in proportion to its lr (Muon, NAdam, Adagrad, a class of
            your own) is asked for its direction at every step, for two more copies of the weights; a trial on a few
            numbers shows at once whether it is such a one. Sharded parameters need one of the former.
        horizon: optimizer steps of the whole run.
        model: the model; give it where it has buffers (BatchNorm), which the guard then restores too.
        options: of `MetaOptimizeStrategy`: `limit`, `warmup`, `cooldown`, `guard`, `expected`, `meta_lr` …;
            `max_grad_norm` is None here, since the loop clips.

    Raises:
        WrapError: an optimizer whose lr cannot be found (its update is not in proportion to it, or it sets its own),
            one that was wrapped before or has taken steps, or an option that MetaOptimize does not have.
        ValueError: an unknown option, a horizon that is no positive whole number, or nothing to train.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(4, 1)
        >>> from metaopt_hpo import wrap
        >>> run = wrap(torch.optim.AdamW(model.parameters()), horizon=200)
        >>> for _ in range(200):
        ...     x = torch.randn(8, 4)
        ...     loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        ...     loss.backward()
        ...     run.step(loss)
        ...
        >>> run.found_lr > 0
        True
    """
    horizon = check_horizon(horizon)
    recipe = read(optimizer)
    for name in options:
        if name in FROM_OPTIMIZER:
            raise WrapError(f"{name} is read from the optimizer; set it there instead of in wrap()")
    known = {f.name for f in fields(WrappedStrategy)} - set(FROM_OPTIMIZER)
    for name in options:
        if name not in known:
            raise WrapError(f"wrap() has no option {name!r}{close_to(name, known)}")
    if options.get("trace", HESSIAN_FREE) != HESSIAN_FREE:
        raise WrapError(
            f"trace={options['trace']!r} computes gradients itself, which wrap() leaves to the loop: use "
            f'make("metaoptimize", trace={options["trace"]!r}) for it'
        )
    if options.get("meta_lr") != 0:
        for group in recipe.groups:
            say_if_untried(group["base"], type(optimizer).__name__)
    if model is not None:
        _check_is_of(model, optimizer)
    strategy = WrappedStrategy(
        lr=recipe.lr, rule=recipe.rule, **{"max_grad_norm": None, "weight_decay": 0.0, **options}
    )
    built = strategy.optimizer(recipe.groups, horizon)
    trained: nn.Module | list[nn.Parameter] = (
        [p for group in built.param_groups for p in group["params"]] if model is None else model
    )
    run = WrappedRun(strategy, built, horizon, trained)
    run.take_over(optimizer)
    if recipe.directions is not None:
        run.follow(recipe.directions)
    optimizer._metaopt_hpo_wrapped = True  # type: ignore[attr-defined]
    optimizer.step = MethodType(_refuse_step, optimizer)  # type: ignore[method-assign]
    return run


def _refuse_step(optimizer: torch.optim.Optimizer, closure: Any = None) -> None:
    raise WrapError(
        "this optimizer is wrapped: call run.step(loss) in the place of its step(), or give run.as_optimizer() to "
        "whoever calls it"
    )


def _check_is_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    own = {id(p) for p in model.parameters()}
    stray = sum(id(p) not in own for group in optimizer.param_groups for p in group["params"])
    if stray:
        raise WrapError(
            f"{stray} of the optimizer's parameters are not the model's: make the optimizer from this model, after "
            "whatever replaces its parameters (fully_shard, adapters, quantisation)"
        )


@dataclass(frozen=True, kw_only=True)
class WrappedStrategy(MetaOptimizeStrategy):
    """The `metaoptimize` strategy over the rule of an optimizer that existed before."""

    name = "metaoptimize"
    rule: Rule = field(default_factory=AdamW)

    def base_rule(self) -> Rule:
        return self.rule

    def build(self, model: Any, horizon: int) -> LRRun:
        raise StrategyError("this strategy belongs to one optimizer; call wrap() for another run")


class WrappedRun(MetaOptimizeRun):
    """A run of `wrap`; L2 decay (Adam's and SGD's) is added to the gradients for the update alone."""

    _source: Directions | None = None
    _wrapped: torch.optim.Optimizer | None = None
    _left: list[float]
    """lr of the wrapped optimizer's groups as they were left; empty once it was said that somebody else sets it."""

    def take_over(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer whose hooks are called around the run's updates."""
        self._wrapped = optimizer
        self._left = _lrs(optimizer)

    def shown_groups(self) -> Sequence[Mapping[str, Any]]:
        return () if self._wrapped is None else self._wrapped.param_groups

    def follow(self, source: Directions) -> None:
        """Take the directions from an optimizer instead of a rule."""
        self._source = source
        if self.guard is not None:
            self.guard.keeps_too(source.snapshot())

    def _before_update(self, step: int) -> None:
        watch(self)
        self._say_if_lr_was_set()
        self._call(HOOKS[0])
        if self._source is not None:
            self._directions = self._source.ask(self.optimizer.param_groups)
            self._note_lr()
        super()._before_update(step)
        if self._source is not None:
            self.optimizer.set_state("u", self._directions)
            self._directions = {}

    def _extra_state(self) -> dict[str, Any]:
        state = super()._extra_state()
        return state if self._source is None else {**state, "source": self._source.state_dict()}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        super()._load_extra_state(state)
        if self._source is not None:
            self._source.load_state_dict(state["source"])
            self._note_lr()

    def _optimizer_step(self, loss: Tensor | None) -> None:
        with _l2_added(self.optimizer.param_groups):
            self.optimizer.step()
        self._call(HOOKS[1])

    def _call(self, hooks: str) -> None:
        for hook in list(getattr(self._wrapped, hooks, {}).values()):
            hook(self._wrapped, (), {})

    def _note_lr(self) -> None:
        """The optimizer was asked, or its state restored, at another lr."""
        if self._wrapped is not None and self._left:
            self._left = _lrs(self._wrapped)

    def _say_if_lr_was_set(self) -> None:
        if self._wrapped is None or not self._left or _lrs(self._wrapped) == self._left:
            return
        self._left = []
        warn(
            f"lr of the wrapped optimizer was set to {_lrs(self._wrapped)[0]:.4g}, by a scheduler perhaps; the run "
            "sets its own and goes on with that: leave the scheduler out",
            LRSetTwice,
        )


def _lrs(optimizer: torch.optim.Optimizer) -> list[float]:
    """lr of each group, where reading it waits for no device."""
    return [float(g["lr"]) for g in optimizer.param_groups if not getattr(g["lr"], "is_cuda", False)]


@contextmanager
def _l2_added(groups: list[dict[str, Any]]) -> Iterator[None]:
    """Inside, `.grad` is the gradient of the loss with ½·l2·|w|² added; outside it is what it was."""
    before: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for group in groups:
            decay = group.get("l2", 0.0)
            if not decay:
                continue
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            before += [(p, p.grad) for p in params]
            sign = -decay if group["maximize"] else decay
            sums = torch._foreach_add([p.grad for p in params], params, alpha=sign)
            for p, g in zip(params, sums, strict=True):
                p.grad = g
    try:
        yield
    finally:
        for p, g in before:
            p.grad = g
