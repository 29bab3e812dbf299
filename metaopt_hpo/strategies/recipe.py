"""What an optimizer says about a run, but for the learning rate: its rule, its groups and their options."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from metaopt_hpo.optim.metaoptimize import MetaOptimize
from metaopt_hpo.optim.rules import SGD, AdamW, Lion, Rule
from metaopt_hpo.strategies.any_optimizer import Directions, Given
from metaopt_hpo.strategies.base import LRRun, LRStrategy
from metaopt_hpo.strategies.errors import WrapError
from metaopt_hpo.strategies.torch_rules import AMSGrad, TorchMomentum, TorchRMSprop

TAKEN = "torch.optim.Optimizer: AdamW, Adam, SGD, RMSprop, Lion, and any other whose update is in proportion to its lr"


class Recipe(NamedTuple):
    """What an optimizer says about a run, but for the learning rate."""

    lr: float
    rule: Rule
    groups: list[dict[str, Any]]
    directions: Directions | None
    """Of an optimizer that no rule is known for."""


def read(optimizer: Any) -> Recipe:
    _refuse_the_wrong_thing(optimizer)
    reader = _reader(optimizer)
    if any(_has_moved(state) for state in optimizer.state.values()):
        raise WrapError(
            "this optimizer has taken steps, whose momentum would be lost; wrap it before its first step"
        )
    lrs = [_lr_of(group) for group in optimizer.param_groups]
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
    if not any(p.requires_grad and p.numel() for group in optimizer.param_groups for p in group["params"]):
        raise WrapError("no parameter of the optimizer has requires_grad=True; there is nothing to train")
    if any(p.is_meta for group in optimizer.param_groups for p in group["params"]):
        raise WrapError(
            "the model is on the meta device and has no weights yet; wrap after to_empty() and loading"
        )
    return Recipe(lr, readings[0].rule, groups, Directions(optimizer) if reader is _any else None)


def _lr_of(group: dict[str, Any]) -> float:
    """The lr that its owner gave to a group; a scheduler that was made before the wrap has changed it since."""
    lr = group.get("initial_lr", group.get("lr"))
    if lr is None:
        raise WrapError(
            "this optimizer sets its own learning rate (its groups have no lr, or None): give it one, as in "
            "transformers' Adafactor(params, lr=1e-3, relative_step=False, scale_parameter=False)"
        )
    return float(lr)


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
    if "beta2_decay" in group:
        raise WrapError(
            "torch's Adafactor scales its lr with the weights and lowers it as steps go by, so that no lr can be found "
            "for it: use transformers' Adafactor(params, lr=1e-3, relative_step=False, scale_parameter=False)"
        )
    if group.get("scale_parameter") or group.get("relative_step"):
        raise WrapError(
            "this Adafactor scales its lr with the weights or lowers it as steps go by: make it with "
            "relative_step=False, scale_parameter=False and an lr"
        )
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
