"""Base and meta updates as pure functions: the maths of each rule and nothing else.

A rule turns a gradient and its own state into a direction. The same five rules serve twice: as a *base* rule
they turn the gradient g of the weights into u (the weights move by −α(u + κw)), as a *meta* rule they turn the
meta-gradient z of the log step sizes β into d (β moves by −ηd). Decoupled weight decay and the step size live
outside a rule.

A rule of your own is a frozen dataclass that derives from :class:`Rule`, names its state and implements
``update`` with differentiable torch operations; every trace then works with it, for traces are Jacobian-vector
products of ``update``. Its state may have any shape (``init_state``), it may ask for the weight and the
parameter's name (``needs``), and every parameter may have a rule of its own (``for_parameter``). A rule that is
``elementwise`` and made of the operations that ``kernels/describe.py`` knows also runs in C and in Triton: its
``update`` is the only description.

Source: arXiv 2402.02342, tables of base and meta updates, with the state *after* the step in the direction (the
printed form with the old m, v is 0/0 at t = 1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

State = tuple[Tensor, ...]

BASE_EPS = 1e-8
"""The ε of torch's optimizers."""
META_EPS = 1e-20
"""ε of a meta rule. z is proportional to α, so 1e-8 would freeze a run that starts at a tiny α; below 1e-20 the
square of z underflows in float32, and this ε then keeps the direction below 1."""

RESERVED = (
    "params",
    "param_names",
    "lr",
    "weight_decay",
    "maximize",
    "base",
    "beta",
    "meta_lr",
    "step_size",
    "skipped",
)
"""Entries of a parameter group that mean something else; a field of such a name is the same in all groups."""


def safe_sqrt(x: Tensor) -> Tensor:
    """√x with derivative 0 at 0 (a plain √ has ∞ there, which makes Jacobian-vector products NaN); NaN stays NaN."""
    zero = x == 0
    return torch.where(zero, torch.zeros_like(x), torch.sqrt(torch.where(zero, torch.ones_like(x), x)))


def check_fraction(name: str, value: float) -> None:
    """Raise ``ValueError`` unless 0 ≤ value < 1, as a decay rate of a moving average must be."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name}={value!r} is not allowed: it must be at least 0 and below 1")


@dataclass(frozen=True)
class Rule(ABC):
    """One update rule: a direction from a gradient, and the names of the state it keeps.

    Examples:
        >>> from metaopt_hpo.optim import AdamW, Rule
        >>> isinstance(AdamW(), Rule)
        True
    """

    states: ClassVar[tuple[str, ...]] = ()
    uses_magnitude: ClassVar[bool] = True
    """False where only signs reach the direction: its derivative is 0 almost everywhere, and no Hessian is needed."""
    elementwise: ClassVar[bool] = False
    """True where every element's direction depends on that element alone: tensors may then be joined into one, and
    sharded ones advanced shard by shard."""
    needs: ClassVar[tuple[str, ...]] = ()
    """What ``update`` is given beside the gradient, as keyword arguments: "weight" (the weights before the step, in
    the state's dtype; of a meta rule β) and "name" (the parameter's name, or None)."""

    aliases: ClassVar[dict[str, str]] = {}
    """Names of fields as parameter groups know them, where they differ."""

    @abstractmethod
    def update(self, g: Tensor, state: State, t: Tensor | float) -> tuple[Tensor, State]:
        """Return (direction, new state).

        Args:
            g: gradient, any shape.
            state: one tensor for each name in ``states``, as ``init_state`` made it, before this step.
            t: number of this step, counted from 1 (a float, or a tensor that broadcasts with g).

        A rule with ``needs`` takes those as keyword arguments too.
        """

    def init_state(self, param: Tensor) -> State:
        """The state before the first step, one tensor for each name in ``states``, of any shape; zeros like the
        parameter unless a rule says otherwise.

        Args:
            param: the weights, in the state's dtype (at least float32); of a meta rule β.
        """
        return tuple(torch.zeros_like(param, memory_format=torch.preserve_format) for _ in self.states)

    def for_parameter(self, name: str | None, param: Tensor) -> Rule:
        """The rule that advances one parameter: this one, unless it is made of several (as :class:`Muon` is)."""
        return self

    def options(self) -> dict[str, Any]:
        """What a parameter group may set for itself: the fields that are numbers, tuples of numbers or None, under
        the names that torch's optimizers give them."""
        values = {self.aliases.get(f.name, f.name): getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if name not in RESERVED and _is_option(value)}

    def with_options(self, values: dict[str, Any]) -> Rule:
        """This rule with the given options changed; lists become tuples.

        Raises:
            ValueError: a value out of range.
        """
        own = self.options()
        names = {self.aliases.get(f.name, f.name): f.name for f in fields(self)}
        changed = {name: _tupled(value) for name, value in values.items() if name in own}
        changed = {names[name]: value for name, value in changed.items() if value != own[name]}
        return replace(self, **changed) if changed else self

    def as_meta(self) -> Rule:
        """This rule with the defaults that suit a meta rule: an unset ``eps`` becomes :data:`META_EPS`."""
        return self._with_eps(META_EPS)

    def as_base(self) -> Rule:
        """This rule with the defaults that suit a base rule: an unset ``eps`` becomes :data:`BASE_EPS`."""
        return self._with_eps(BASE_EPS)

    def _with_eps(self, eps: float) -> Rule:
        unset = any(f.name == "eps" for f in fields(self)) and getattr(self, "eps") is None  # noqa: B009
        return replace(self, eps=eps) if unset else self  # type: ignore[call-arg]


def _is_option(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(isinstance(x, int | float) for x in value)
    return value is None or isinstance(value, int | float)


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def direction(
    rule: Rule, g: Tensor, state: State, t: Tensor | float, weight: Tensor, name: str | None
) -> tuple[Tensor, State]:
    """``rule.update`` with what the rule asked for."""
    if not rule.needs:
        return rule.update(g, state, t)
    at_hand = {"weight": weight, "name": name}
    return rule.update(g, state, t, **{what: at_hand[what] for what in rule.needs})


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


def check_pair(name: str, pair: tuple[float, float]) -> None:
    """Raise ``ValueError`` unless ``pair`` is two numbers in [0, 1)."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(
            f"{name}={pair!r} is not allowed: it must be a pair of numbers, each at least 0 and below 1"
        )
    for i, value in enumerate(pair):
        check_fraction(f"{name}[{i}]", value)


def check_eps(eps: float | None) -> None:
    """Raise ``ValueError`` unless ``eps`` is None or a non-negative number."""
    if eps is not None and not eps >= 0.0:
        raise ValueError(f"eps={eps!r} is not allowed: it must be at least 0, or None for the default")


def resolved_eps(eps: float | None) -> float:
    """The ε in use: :data:`BASE_EPS` where none was given (``as_meta`` puts another in its place)."""
    return BASE_EPS if eps is None else eps


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
