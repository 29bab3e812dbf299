"""Base and meta updates as pure functions: the maths of each rule and nothing else.

The same five rules serve twice: as a *base* rule they turn the gradient g of the weights into u (the weights move by
−α(u + κw)), as a *meta* rule they turn the meta-gradient z of the log step sizes β into d (β moves by −ηd). Decoupled
weight decay and the step size live outside a rule. ``rule`` says what a rule is and how to write one.

Source: arXiv 2402.02342, tables of base and meta updates, with the state *after* the step in the direction (the
printed form with the old m, v is 0/0 at t = 1).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from metaopt_hpo.optim.rule import (
    BASE_EPS,
    META_EPS,
    RESERVED,
    Rule,
    State,
    check_eps,
    check_fraction,
    check_pair,
    direction,
    resolved_eps,
    safe_sqrt,
)

__all__ = [
    "BASE_EPS",
    "BASE_RULES",
    "META_EPS",
    "META_RULES",
    "RESERVED",
    "SGD",
    "SGDM",
    "AdamW",
    "Lion",
    "RMSprop",
    "Rule",
    "State",
    "UnnormalisedAdamW",
    "base_rule",
    "check_eps",
    "check_fraction",
    "check_pair",
    "direction",
    "meta_rule",
    "resolved_eps",
    "safe_sqrt",
]


@dataclass(frozen=True)
class SGD(Rule):
    """The gradient itself: u = g.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(4, 1)
        >>> from metaopt_hpo.optim import SGD, MetaOptimize
        >>> optimizer = MetaOptimize(model.parameters(), lr=1e-3, base=SGD())
    """

    elementwise: ClassVar[bool] = True

    def update(self, g: Tensor, state: State, t: Tensor | float) -> tuple[Tensor, State]:
        return g, ()


@dataclass(frozen=True)
class SGDM(Rule):
    """Momentum as an average: m' = ρm + (1−ρ)g, u = m'.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(4, 1)
        >>> from metaopt_hpo.optim import SGDM, MetaOptimize
        >>> optimizer = MetaOptimize(model.parameters(), lr=1e-3, base=SGDM(momentum=0.95))
    """

    momentum: float = 0.9
    states: ClassVar[tuple[str, ...]] = ("m",)
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fraction("momentum", self.momentum)

    def update(self, g: Tensor, state: State, t: Tensor | float) -> tuple[Tensor, State]:
        m = self.momentum * state[0] + (1 - self.momentum) * g
        return m, (m,)


@dataclass(frozen=True)
class RMSprop(Rule):
    """v' = λv + (1−λ)g², u = g / (√(v'/(1−λᵗ)) + ε).

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(4, 1)
        >>> from metaopt_hpo.optim import MetaOptimize, RMSprop
        >>> optimizer = MetaOptimize(model.parameters(), lr=1e-3, base=RMSprop(beta=0.99))
    """

    beta: float = 0.999
    eps: float | None = None
    states: ClassVar[tuple[str, ...]] = ("v",)
    aliases: ClassVar[dict[str, str]] = {"beta": "alpha"}
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fraction("beta", self.beta)
        check_eps(self.eps)

    def update(self, g: Tensor, state: State, t: Tensor | float) -> tuple[Tensor, State]:
        v = self.beta * state[0] + (1 - self.beta) * g * g
        return g / (safe_sqrt(v / (1 - self.beta**t)) + resolved_eps(self.eps)), (v,)


@dataclass(frozen=True)
class AdamW(Rule):
    """m' = ρm + (1−ρ)g, v' = λv + (1−λ)g², u = (m'/(1−ρᵗ)) / (√(v'/(1−λᵗ)) + ε); as a meta rule it is Adam.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(4, 1)
        >>> from metaopt_hpo.optim import AdamW, MetaOptimize
        >>> optimizer = MetaOptimize(model.parameters(), base=AdamW(betas=(0.9, 0.95)), weight_decay=0.1)
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float | None = None
    states: ClassVar[tuple[str, ...]] = ("m", "v")
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_pair("betas", self.betas)
        check_eps(self.eps)

    def update(self, g: Tensor, state: State, t: Tensor | float) -> tuple[Tensor, State]:
        rho, lam = self.betas
        m = rho * state[0] + (1 - rho) * g
        v = lam * state[1] + (1 - lam) * g * g
        return (m / (1 - rho**t)) / (safe_sqrt(v / (1 - lam**t)) + resolved_eps(self.eps)), (m, v)


@dataclass(frozen=True)
class Lion(Rule):
    """u = sign(cm + (1−c)g), then m' = ρm + (1−ρ)g; ``betas`` is (c, ρ), as in the Lion paper's code.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(4, 1)
        >>> from metaopt_hpo.optim import Lion, MetaOptimize
        >>> optimizer = MetaOptimize(model.parameters(), lr=1e-4, base="adamw", meta=Lion())
    """

    betas: tuple[float, float] = (0.9, 0.99)
    states: ClassVar[tuple[str, ...]] = ("m",)
    elementwise: ClassVar[bool] = True
    uses_magnitude: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_pair("betas", self.betas)

    def update(self, g: Tensor, state: State, t: Tensor | float) -> tuple[Tensor, State]:
        c, rho = self.betas
        u = torch.sign(c * state[0] + (1 - c) * g)
        return u, (rho * state[0] + (1 - rho) * g,)


@dataclass(frozen=True)
class UnnormalisedAdamW(Rule):
    """m' = ρm + g, v' = λv + (1−λ)g², u = m' / √(v'/(1−λᵗ) + ε): the units of the paper's published experiments.

    Its first moment is not divided by 1/(1−ρ) and not bias-corrected, and ε stands inside the root: at ρ = 0.9 the
    direction is ten times :class:`AdamW`'s once m has settled. See ``presets.authors_units``.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(4, 1)
        >>> from metaopt_hpo.optim import MetaOptimize, UnnormalisedAdamW
        >>> optimizer = MetaOptimize(model.parameters(), lr=1e-3, base=UnnormalisedAdamW())
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-10
    states: ClassVar[tuple[str, ...]] = ("m", "v")
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_pair("betas", self.betas)
        check_eps(self.eps)

    def update(self, g: Tensor, state: State, t: Tensor | float) -> tuple[Tensor, State]:
        rho, lam = self.betas
        m = rho * state[0] + g
        v = lam * state[1] + (1 - lam) * g * g
        return m / safe_sqrt(v / (1 - lam**t) + self.eps), (m, v)


BASE_RULES: dict[str, type[Rule]] = {
    "sgd": SGD,
    "sgdm": SGDM,
    "rmsprop": RMSprop,
    "adamw": AdamW,
    "lion": Lion,
}
"""Base rules by name; ``muon`` adds its own."""
META_RULES: dict[str, type[Rule]] = {"sgd": SGD, "adam": AdamW, "rmsprop": RMSprop, "lion": Lion}


BASE_STATE, META_STATE = ("h", "H", "Q", "step", "block"), ("lr", "step")
"""Names of states that the optimizer has given to something else."""


def _check_states(rule: Rule, taken: tuple[str, ...]) -> None:
    for i, name in enumerate(rule.states):
        if name in taken or name.startswith(("H_", "Q_")) or name in rule.states[:i]:
            raise ValueError(
                f"{type(rule).__name__}.states has {name!r}, which is taken: give that state another name"
            )


def base_rule(rule: str | Rule) -> Rule:
    """The base rule of that name, or the given rule object, with base defaults."""
    found = _find("base", rule, BASE_RULES).as_base()
    _check_states(found, BASE_STATE)
    unknown = [what for what in found.needs if what not in ("weight", "name")]
    if unknown:
        raise ValueError(f"{type(found).__name__}.needs has {unknown[0]!r}: it may have 'weight' and 'name'")
    return found


def meta_rule(rule: str | Rule) -> Rule:
    """The meta rule of that name, or the given rule object, with meta defaults."""
    found = _find("meta", rule, META_RULES).as_meta()
    _check_states(found, META_STATE)
    return found


def _find(role: str, rule: str | Rule, known: dict[str, type[Rule]]) -> Rule:
    if isinstance(rule, Rule):
        lists = {f.name: tuple(v) for f in fields(rule) if isinstance(v := getattr(rule, f.name), list)}
        return replace(rule, **lists) if lists else rule
    if not isinstance(rule, str) or rule not in known:
        raise ValueError(f"{role}={rule!r} is not known: use one of {', '.join(known)}, or a Rule object")
    return known[rule]()
