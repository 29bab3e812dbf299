"""Keep the optimizer you have, and let its learning rate be found: `wrap(optimizer, horizon)`.

The recipe stays: groups with their relative learning rates, betas, ε and momentum, weight decay in the form the
optimizer has it, and whatever clipping the loop does. Only the learning rate is set by MetaOptimize, as in the
`metaoptimize` strategy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metaopt_hpo.optim.metaoptimize import MetaOptimize
from metaopt_hpo.optim.rules import SGD, AdamW, Lion, Rule
from metaopt_hpo.optim.traces import HESSIAN_FREE
from metaopt_hpo.strategies.any_optimizer import Directions, Given
from metaopt_hpo.strategies.base import LRRun, LRStrategy, StrategyError, check_horizon, close_to
from metaopt_hpo.strategies.errors import WrapError as WrapError
from metaopt_hpo.strategies.metaoptimize import MetaOptimizeStrategy
from metaopt_hpo.strategies.metaoptimize_run import MetaOptimizeRun
from metaopt_hpo.strategies.torch_rules import AMSGrad, TorchMomentum, TorchRMSprop
from metaopt_hpo.strategies.unfinished import watch
from metaopt_hpo.strategies.untried import say_if_untried

TAKEN = "torch.optim.Optimizer: AdamW, Adam, SGD, RMSprop, Lion, and any other whose update is in proportion to its lr"

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
    recipe = _read(optimizer)
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

    def follow(self, source: Directions) -> None:
        """Take the directions from an optimizer instead of a rule."""
        self._source = source
        if self.guard is not None:
            self.guard.keeps_too(source.snapshot())

    def _before_update(self, step: int) -> None:
        watch(self)
        if self._source is not None:
            self._directions = self._source.ask(self.optimizer.param_groups)
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

    def _optimizer_step(self, loss: Tensor | None) -> None:
        with _l2_added(self.optimizer.param_groups):
            self.optimizer.step()


class Recipe(NamedTuple):
    """What an optimizer says about a run, but for the learning rate."""

    lr: float
    rule: Rule
    groups: list[dict[str, Any]]
    directions: Directions | None
    """Of an optimizer that no rule is known for."""


def _read(optimizer: Any) -> Recipe:
    _refuse_the_wrong_thing(optimizer)
    reader = _reader(optimizer)
    if any(_has_moved(state) for state in optimizer.state.values()):
        raise WrapError(
            "this optimizer has taken steps, whose momentum would be lost; wrap it before its first step"
        )
    lrs = [float(group["lr"]) for group in optimizer.param_groups]
    lr = next((x for x in lrs if x > 0), 0.0)
    if not (lr > 0 and all(math.isfinite(x) and x >= 0 for x in lrs)):
        raise WrapError(
            f"the optimizer's learning rates are {lrs}; at least one must be positive, to start from"
        )
    readings = [reader(group) for group in optimizer.param_groups]
    groups = []
    for group, reading, own in zip(optimizer.param_groups, readings, lrs, strict=True):
        names = group.get("param_names")
        decay = float(group.get("weight_decay", 0.0))
        groups.append(
            {
                "params": list(group["params"])
                if names is None
                else list(zip(names, group["params"], strict=True)),
                "base": reading.rule,
                "lr": own,
                "lr_multiplier": own / lr,
                "weight_decay": 0.0 if reading.l2 or reader is _any else decay,
                "l2": decay if reading.l2 else 0.0,
                "maximize": bool(group.get("maximize", getattr(optimizer, "maximize", False))),
            }
        )
    if not any(p.requires_grad for group in optimizer.param_groups for p in group["params"]):
        raise WrapError("no parameter of the optimizer has requires_grad=True; there is nothing to train")
    if any(p.is_meta for group in optimizer.param_groups for p in group["params"]):
        raise WrapError(
            "the model is on the meta device and has no weights yet; wrap after to_empty() and loading"
        )
    return Recipe(lr, readings[0].rule, groups, Directions(optimizer) if reader is _any else None)


def _refuse_the_wrong_thing(optimizer: Any) -> None:
    twice = getattr(optimizer, "_metaopt_hpo_wrapped", False) is True
    if twice or isinstance(optimizer, LRRun | MetaOptimize) or hasattr(optimizer, "lr_run"):
        raise WrapError("this optimizer's learning rate is found already; wrap() takes a plain one, once")
    if isinstance(optimizer, LRStrategy) or (
        isinstance(optimizer, type) and issubclass(optimizer, LRStrategy)
    ):
        raise WrapError(
            "wrap() takes a torch optimizer and this is a strategy: call its build(model, horizon) instead"
        )


class _Reading(NamedTuple):
    rule: Rule
    l2: bool
    """Whether weight decay is added to the gradient."""


def _reader(optimizer: Any) -> Callable[[dict[str, Any]], _Reading]:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise WrapError(f"{type(optimizer).__qualname__} is no torch optimizer; what can be wrapped: {TAKEN}")
    kind = type(optimizer)
    if isinstance(vars(optimizer).get("optimizer"), torch.optim.Optimizer):
        raise WrapError(
            f"{kind.__qualname__} is a shell around another optimizer: wrap that one first, and give "
            "run.as_optimizer() to whatever makes the shell (accelerator.prepare)"
        )
    known: dict[type, Callable[[dict[str, Any]], _Reading]] = {
        torch.optim.AdamW: _adamw,
        torch.optim.Adam: _adam,
        torch.optim.SGD: _sgd,
        torch.optim.RMSprop: _rmsprop,
    }
    for cls, reader in known.items():
        if kind is cls or (issubclass(kind, cls) and _steps_like(kind, cls)):
            return reader
    if kind.__name__ == "Lion" and all("betas" in group for group in optimizer.param_groups):
        other = any(group.get(name) for group in optimizer.param_groups for name in LION_OPTIONS)
        if not other and not getattr(optimizer, "decoupled_wd", False):
            return _lion
    return _any


def _has_moved(state: dict[str, Any]) -> bool:
    """Whether the state of a parameter is that of steps taken; Adagrad's is made beforehand."""
    return bool(state) and not ("step" in state and float(state["step"]) == 0)


def _steps_like(kind: type, cls: type) -> bool:
    """Whether a class derived from a known one leaves alone what a step is made of."""
    return not any(
        name in vars(c) for c in kind.__mro__[: kind.__mro__.index(cls)] for name in ("step", "_init_group")
    )


LION_OPTIONS = ("cautious", "cautious_factor", "fixed_decay", "use_gc", "adanorm")
"""Options of other packages' Lion that the rule here does not have."""


def _any(group: dict[str, Any]) -> _Reading:
    _refuse_options(group, "this optimizer", "differentiable")
    if "d" in group or "d0" in group:
        raise WrapError(
            "this optimizer sets its own learning rate (its groups have a distance d): step it as it is"
        )
    return _Reading(Given(), False)


def _refuse_options(group: dict[str, Any], kind: str, *names: str) -> None:
    for name in names:
        if group.get(name):
            raise WrapError(
                f"{name}={group[name]!r} of {kind} is not supported by MetaOptimize; leave it out"
            )


def _adam(group: dict[str, Any]) -> _Reading:
    _refuse_options(group, "Adam", "differentiable")
    betas, eps = tuple(map(float, group["betas"])), float(group["eps"])
    rule = AMSGrad if group.get("amsgrad") else AdamW
    return _Reading(rule(betas=(betas[0], betas[1]), eps=eps), not group.get("decoupled_weight_decay", False))


def _adamw(group: dict[str, Any]) -> _Reading:
    return _adam(group)._replace(l2=False)


def _sgd(group: dict[str, Any]) -> _Reading:
    _refuse_options(group, "SGD", "differentiable")
    momentum = float(group["momentum"])
    if momentum == 0:
        return _Reading(SGD(), True)
    return _Reading(TorchMomentum(momentum, float(group["dampening"]), bool(group["nesterov"])), True)


def _rmsprop(group: dict[str, Any]) -> _Reading:
    _refuse_options(group, "RMSprop", "differentiable")
    alpha, eps, momentum = (float(group[name]) for name in ("alpha", "eps", "momentum"))
    return _Reading(TorchRMSprop(alpha, eps, momentum, bool(group["centered"])), True)


def _lion(group: dict[str, Any]) -> _Reading:
    betas = tuple(map(float, group["betas"]))
    return _Reading(Lion(betas=(betas[0], betas[1])), not group.get("weight_decouple", True))


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
