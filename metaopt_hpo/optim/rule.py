"""What a rule is: an update as a pure function, with the names of the state it keeps.

A rule turns a gradient and its own state into a direction. A rule of your own is a frozen dataclass that derives from
:class:`Rule`, names its state and implements ``update`` with differentiable torch operations; every trace then works
with it, for traces are Jacobian-vector products of ``update``. Its state may have any shape (``init_state``), it may
ask for the weight and the parameter's name (``needs``), and every parameter may have a rule of its own
(``for_parameter``). A rule that is ``elementwise`` and made of the operations that ``kernels/describe.py`` knows also
runs in C and in Triton: its ``update`` is the only description.
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
    "start_lr",
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
