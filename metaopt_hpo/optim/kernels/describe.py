"""A rule's ``update``, read off by running it on symbols: the one description from which every fast path follows.

``describe`` gives a straight-line :class:`Program`, which ``emit.py`` writes as C or as Triton, or runs with torch's
multi-tensor operations. What depends on numbers alone (the rule's own, and the step count) is told
from what is done to every element, and is computed once, in double precision.

A rule can be described if it is ``elementwise`` and its ``update`` uses + − · / **, comparisons and the functions of
:data:`FUNCTIONS`; anything else raises :class:`NotDescribed`, which names it.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch

from metaopt_hpo.optim.rules import Rule


class NotDescribed(Exception):
    """A rule that has no such description; the message names what stands in the way."""


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        op: its name: "input", "number", "constant", or one of :data:`FUNCTIONS`' values.
        args: indices of earlier nodes; of an input its name, of a number its index, of a constant its value.
        scalar: whether it depends on numbers alone.
    """

    op: str
    args: tuple[Any, ...]
    scalar: bool


@dataclass(frozen=True)
class Program:
    """A rule's update in single assignments.

    Attributes:
        nodes: in order.
        direction: index of u.
        new: indices of the new states.
        states: how many states the rule has.
    """

    nodes: tuple[Node, ...]
    direction: int
    new: tuple[int, ...]

    @property
    def states(self) -> int:
        return len(self.new)


def _clamp(x: Any, min: Any = None, max: Any = None) -> Any:
    if min is not None:
        x = torch.maximum(x, x._lift(min))
    return x if max is None else torch.minimum(x, x._lift(max))


FUNCTIONS: dict[Any, str] = {
    torch.add: "add", torch.sub: "sub", torch.mul: "mul", torch.div: "div", torch.neg: "neg", torch.pow: "pow",
    torch.sqrt: "sqrt", torch.abs: "abs", torch.sign: "sign", torch.exp: "exp", torch.maximum: "max",
    torch.minimum: "min", torch.where: "where", torch.square: "square", torch.rsqrt: "rsqrt",
    torch.zeros_like: "zero", torch.ones_like: "one", torch.clamp: "clamp", torch.lerp: "lerp",
}  # fmt: skip
"""What ``update`` may call, and what it is called here."""
EVALUATED: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "pow": operator.pow,
    "neg": operator.neg, "sqrt": lambda x: x**0.5, "abs": abs, "eq": operator.eq, "lt": operator.lt,
    "gt": operator.gt, "le": operator.le, "ge": operator.ge, "max": max, "min": min,
    "sign": lambda x: float((x > 0) - (x < 0)), "where": lambda c, a, b: a if c else b,
}  # fmt: skip
"""What is done with numbers, in Python."""


class Symbol:
    """A value that is not known yet: arithmetic on it is written down.

    What depends on the rule's own numbers alone is known: an update may decide by it ("if self.momentum"), and rules
    that decide differently have different programs.
    """

    def __init__(self, trace: list[Node], index: int, value: float | None = None) -> None:
        self.trace, self.index, self.value = trace, index, value

    def _lift(self, x: Any) -> Symbol:
        if isinstance(x, Symbol):
            return x
        if isinstance(x, bool | int | float):
            return self._new("constant", (float(x),), True, float(x))
        raise NotDescribed(f"it uses a {type(x).__name__}")

    def _new(self, op: str, args: tuple[Any, ...], scalar: bool, value: float | None = None) -> Symbol:
        node = Node(op, args, scalar)
        if node in self.trace:  # the same operation on the same values
            return Symbol(self.trace, self.trace.index(node), value)
        self.trace.append(node)
        return Symbol(self.trace, len(self.trace) - 1, value)

    def _do(self, op: str, *args: Any) -> Symbol:
        values = [self._lift(x) for x in args]
        known = [x.value for x in values if x.value is not None]
        value = None
        if len(known) == len(values) and op in EVALUATED:
            with contextlib.suppress(ArithmeticError):
                value = EVALUATED[op](*known)
        scalar = all(self.trace[x.index].scalar for x in values)
        return self._new(op, tuple(x.index for x in values), scalar, value)

    def _call(self, op: str, *args: Any, **named: Any) -> Symbol:
        if op in ("zero", "one"):
            return self._lift(float(op == "one"))
        if op == "clamp":
            result: Symbol = _clamp(*args, **named)
            return result
        if named:
            raise NotDescribed(f"it gives {', '.join(named)} to {op}")
        if op == "square":
            return self._do("mul", args[0], args[0])
        if op == "rsqrt":
            return self._do("div", 1.0, self._do("sqrt", args[0]))
        if op == "lerp":
            return self._do("add", args[0], self._do("mul", args[2], self._do("sub", args[1], args[0])))
        if op == "pow":
            return self._power(*args)
        if op == "where" and (root := self._safe_root(*args)) is not None:
            return root
        return self._do(op, *args)

    def _power(self, base: Any, exponent: Any) -> Symbol:
        if isinstance(exponent, int | float):
            if exponent == 2:
                return self._do("mul", base, base)
            if exponent == 0.5:
                return self._do("sqrt", base)
        out = self._do("pow", base, exponent)
        if not self.trace[out.index].scalar:
            raise NotDescribed("it raises elements to a power other than 2 and ½")
        return out

    def _safe_root(self, zero: Any, then: Any, other: Any) -> Symbol | None:
        """√x, where it is written as ``rules.safe_sqrt`` does for the sake of its derivative."""
        node = self.trace[self._lift(other).index]
        if node.op != "sqrt" or self.trace[node.args[0]].op != "where":
            return None
        inner = self.trace[node.args[0]]
        if inner.args[0] != zero.index or self.trace[self._lift(then).index].args != (0.0,):
            return None
        return self._do("sqrt", Symbol(self.trace, inner.args[2]))

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), named: dict[str, Any] | None = None
    ) -> Symbol:
        op = FUNCTIONS.get(function)
        if op is None:
            raise NotDescribed(f"it calls {getattr(function, '__name__', function)}")
        first: Symbol = next(x for x in args if isinstance(x, Symbol))
        return first._call(op, *args, **(named or {}))

    def __bool__(self) -> bool:
        if self.value is not None:
            return bool(self.value)
        raise NotDescribed("it decides by a value (an if, and, or, or not)")

    def __float__(self) -> float:
        raise NotDescribed("it turns a value into a Python number")

    def __getattr__(self, name: str) -> Any:
        function = getattr(torch, name, None)
        if function in FUNCTIONS:
            return lambda *args, **named: self._call(FUNCTIONS[function], self, *args, **named)
        raise NotDescribed(f"it uses .{name}")

    __hash__ = object.__hash__


def _operator(op: str, swap: bool) -> Callable[[Symbol, Any], Symbol]:
    return lambda a, b: a._call(op, b, a) if swap else a._call(op, a, b)


for _name, _op in {"add": "add", "sub": "sub", "mul": "mul", "truediv": "div", "pow": "pow"}.items():
    setattr(Symbol, f"__{_name}__", _operator(_op, False))
    setattr(Symbol, f"__r{_name}__", _operator(_op, True))
for _name in ("eq", "lt", "gt", "le", "ge"):
    setattr(Symbol, f"__{_name}__", _operator(_name, False))
setattr(Symbol, "__neg__", lambda a: a._do("neg", a))  # noqa: B010
setattr(Symbol, "__abs__", lambda a: a._do("abs", a))  # noqa: B010


def numbers(rule: Rule) -> dict[str, float]:
    """The fields of a rule that are floating-point numbers; of a tuple of them, "name.0", "name.1", …"""
    out: dict[str, float] = {}
    for f in fields(rule):
        value = getattr(rule, f.name)
        if isinstance(value, float):
            out[f.name] = value
        elif isinstance(value, tuple) and value and all(isinstance(x, int | float) for x in value):
            out |= {f"{f.name}.{i}": float(x) for i, x in enumerate(value)}
    return out


def with_numbers(rule: Rule, names: Sequence[str], values: Sequence[Any]) -> Rule:
    """The rule with other objects in the place of its numbers, past the checks of its constructor."""
    parts: dict[str, Any] = {f.name: getattr(rule, f.name) for f in fields(rule)}
    for name, value in zip(names, values, strict=True):
        field, _, i = name.partition(".")
        parts[field] = value if not i else (*parts[field][: int(i)], value, *parts[field][int(i) + 1 :])
    copy = object.__new__(type(rule))
    for field, value in parts.items():
        object.__setattr__(copy, field, value)
    return copy


@lru_cache(maxsize=1024)
def _described(rule: Rule) -> Program | str:
    try:
        return _describe(rule)
    except NotDescribed as error:
        return str(error)
    except Exception as error:
        return f"its update fails on symbols: {type(error).__name__}: {error}"


def describe(rule: Rule) -> Program:
    """The program of a rule; equal for rules that differ in numbers only (and in no decision by them).

    Raises:
        NotDescribed: it has none, and why.
    """
    try:
        found = _described(rule)
    except TypeError:
        found = f"{type(rule).__name__} cannot be hashed"
    if isinstance(found, str):
        raise NotDescribed(found)
    return found


def is_described(rule: Rule) -> bool:
    """Whether a rule has a program."""
    try:
        describe(rule)
    except NotDescribed:
        return False
    return True


def _describe(rule: Rule) -> Program:
    if not rule.elementwise:
        raise NotDescribed("it is not elementwise")
    if "name" in rule.needs:
        raise NotDescribed("it asks for the parameter's name")
    if type(rule).init_state is not Rule.init_state:
        raise NotDescribed("its state does not start at 0 in the parameter's shape")
    trace: list[Node] = []
    root = Symbol(trace, -1)
    names = list(numbers(rule))
    values = [root._new("number", (i,), True, x) for i, x in enumerate(numbers(rule).values())]
    t = root._new("input", ("t",), True)
    g = root._new("input", ("g",), False)
    state = tuple(root._new("input", (f"s{i}",), False) for i in range(len(rule.states)))
    asked = {"weight": root._new("input", ("w",), False)} if "weight" in rule.needs else {}
    live = with_numbers(rule, names, values)
    u, new = live.update(g, state, t, **asked)  # type: ignore[arg-type]
    if len(new) != len(rule.states):
        raise NotDescribed(f"its update returns {len(new)} states and names {len(rule.states)}")
    return _pruned(trace, g._lift(u).index, tuple(g._lift(x).index for x in new))


def _pruned(trace: list[Node], u: int, new: tuple[int, ...]) -> Program:
    """Only what the results depend on."""
    used: set[int] = set()
    todo = [u, *new]
    while todo:
        i = todo.pop()
        if i not in used:
            used.add(i)
            if trace[i].op not in ("input", "number", "constant"):
                todo += trace[i].args
    order = {old: k for k, old in enumerate(sorted(used))}
    nodes = []
    for old in sorted(used):
        node = trace[old]
        leaf = node.op in ("input", "number", "constant")
        nodes.append(node if leaf else Node(node.op, tuple(order[a] for a in node.args), node.scalar))
    return Program(tuple(nodes), order[u], tuple(order[x] for x in new))
