"""A rule's ``update``, read off by running it on symbols: the one description from which every fast path follows.

``describe`` gives a straight-line :class:`Program`; ``emit`` writes it as C or as Triton, ``run`` (in ``eager``) does
it with torch's multi-tensor operations. What depends on numbers alone (the rule's own, and the step count) is told
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
from torch import Tensor

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


INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "eq": "==",
    "lt": "<",
    "gt": ">",
    "le": "<=",
    "ge": ">=",
}
EVALUATED: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "pow": operator.pow,
    "neg": operator.neg, "sqrt": lambda x: x**0.5, "abs": abs, "eq": operator.eq, "lt": operator.lt,
    "gt": operator.gt, "le": operator.le, "ge": operator.ge, "max": max, "min": min,
    "sign": lambda x: float((x > 0) - (x < 0)), "where": lambda c, a, b: a if c else b,
}  # fmt: skip
"""What is done with numbers, in Python."""


@dataclass(frozen=True)
class Dialect:
    """How operations are written in a language.

    Attributes:
        scalar, element: of an operation's name, a template for numbers and one for elements.
        cast: a number as an element's constant.
        scalar_line, element_line: templates of an assignment, with name and value.
    """

    scalar: dict[str, str]
    element: dict[str, str]
    cast: str
    scalar_line: str
    element_line: str


C = Dialect(
    {"pow": "pow({0}, {1})", "sqrt": "sqrt({0})", "abs": "fabs({0})", "neg": "-{0}", "exp": "exp({0})",
     "max": "fmax({0}, {1})", "min": "fmin({0}, {1})", "where": "({0} != 0 ? {1} : {2})",
     "sign": "(double)(({0} > 0) - ({0} < 0))"},
    {"sqrt": "SQRT({0})", "abs": "({0} < 0 ? -{0} : {0})", "neg": "-{0}", "exp": "EXP({0})",
     "max": "({0} > {1} || {0} != {0} ? {0} : {1})", "min": "({0} < {1} || {0} != {0} ? {0} : {1})",
     "where": "({0} != 0 ? {1} : {2})", "sign": "(T)(({0} > 0) - ({0} < 0))"},
    "(T)({0})", "const double {0} = {1};", "const T {0} = {1};",
)  # fmt: skip
TRITON = Dialect(
    {"pow": "tl.exp({1} * tl.log({0}))", "sqrt": "tl.sqrt({0})", "abs": "tl.abs({0})", "neg": "-{0}",
     "exp": "tl.exp({0})", "max": "tl.maximum({0}, {1})", "min": "tl.minimum({0}, {1})",
     "where": "tl.where({0} != 0, {1}, {2})", "sign": "tl.where({0} > 0, 1.0, tl.where({0} < 0, -1.0, 0.0))"},
    {"sqrt": "tl.sqrt({0})", "abs": "tl.abs({0})", "neg": "-{0}", "exp": "tl.exp({0})",
     "max": "tl.where(({0} > {1}) | ({0} != {0}), {0}, {1})", "min": "tl.where(({0} < {1}) | ({0} != {0}), {0}, {1})",
     "where": "tl.where({0} != 0, {1}, {2})", "sign": "tl.where({0} > 0, 1.0, tl.where({0} < 0, -1.0, 0.0))"},
    "(zero_ + {0}).to(T)", "{0} = {1}", "{0} = {1}",
)  # fmt: skip


@dataclass(frozen=True)
class Text:
    """A program written out: lines for numbers and for elements, and the names of the results."""

    scalars: tuple[str, ...]
    elements: tuple[str, ...]
    direction: str
    new: tuple[str, ...]


def emit(program: Program, dialect: Dialect, prefix: str, inputs: dict[str, str]) -> Text:
    """Write a program.

    Args:
        program: what to write.
        dialect: in which language.
        prefix: of every name, so that two programs can stand side by side.
        inputs: what "t", "g", "w", "s0", … are called, and "number" the template of a number of an index.

    Division by a number becomes a product with its reciprocal, for a division an element costs more than memory.
    """
    scalars: list[str] = []
    elements: list[str] = []
    names: list[str] = []
    constants: dict[str, str] = {}

    def constant(text: str) -> str:
        if text not in constants:
            constants[text] = f"{prefix}k{len(constants)}"
            scalars.append(dialect.element_line.format(constants[text], dialect.cast.format(text)))
        return constants[text]

    for i, node in enumerate(program.nodes):
        if node.op == "input":
            names.append(inputs[node.args[0]])
            continue
        if node.op == "number":
            names.append(inputs["number"].format(node.args[0]))
            continue
        if node.op == "constant":
            names.append(repr(node.args[0]))
            continue
        own = f"{prefix}{'x' if node.scalar else 'e'}{i}"
        names.append(own)
        if node.scalar:
            args = [names[a] for a in node.args]
            scalars.append(dialect.scalar_line.format(own, _expression(node.op, args, dialect.scalar)))
            continue
        args = []
        op = node.op
        for k, a in enumerate(node.args):
            text = names[a]
            if program.nodes[a].scalar:
                divisor = op == "div" and k == 1
                text = constant(f"1.0 / {text}" if divisor else text)
                op = "mul" if divisor else op
            args.append(text)
        elements.append(dialect.element_line.format(own, _expression(op, args, dialect.element)))
    results = []
    for index in (program.direction, *program.new):
        results.append(constant(names[index]) if program.nodes[index].scalar else names[index])
    return Text(tuple(scalars), tuple(elements), results[0], tuple(results[1:]))


def _expression(op: str, args: list[str], table: dict[str, str]) -> str:
    if op in INFIX:
        return f"{args[0]} {INFIX[op]} {args[1]}"
    if op not in table:
        raise NotDescribed(f"{op} has no translation")
    return table[op].format(*args)


FOREACH: dict[str, Callable[..., Any]] = {
    "add": torch._foreach_add, "sub": torch._foreach_sub, "mul": torch._foreach_mul, "div": torch._foreach_div,
    "neg": torch._foreach_neg, "sqrt": torch._foreach_sqrt, "abs": torch._foreach_abs, "sign": torch._foreach_sign,
    "exp": torch._foreach_exp,
}  # fmt: skip
SINGLE: dict[str, Callable[..., Any]] = {
    **{name: EVALUATED[name] for name in ("add", "sub", "mul", "div", "eq", "lt", "gt", "le", "ge")},
    "max": torch.maximum, "min": torch.minimum, "where": torch.where,
}  # fmt: skip


def run(
    program: Program, values: Sequence[float], t: float, inputs: dict[str, list[Tensor]]
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """The program on lists of tensors, with torch's multi-tensor operations.

    Args:
        program: what to do.
        values: the rule's numbers.
        t: number of this step.
        inputs: "g", "s0", …, and "w" where it is asked for: one tensor a parameter each.

    Returns:
        The directions, and for each state the new tensors; some may be the given ones.
    """
    out: list[Any] = []
    for node in program.nodes:
        if node.op == "input":
            out.append(t if node.args[0] == "t" else inputs[node.args[0]])
        elif node.op == "number":
            out.append(values[node.args[0]])
        elif node.op == "constant":
            out.append(node.args[0])
        else:
            args = [out[a] for a in node.args]
            out.append(EVALUATED[node.op](*args) if node.scalar else _many(node.op, args))

    def listed(i: int) -> list[Tensor]:
        value = out[i]
        return value if isinstance(value, list) else [torch.full_like(g, float(value)) for g in inputs["g"]]

    return listed(program.direction), [listed(i) for i in program.new]


def _many(op: str, args: list[Any]) -> list[Tensor]:
    if op in FOREACH:
        if isinstance(args[0], list):
            return list(FOREACH[op](*args))
        if op in ("add", "mul"):
            return list(FOREACH[op](args[1], args[0]))
        if op == "sub":
            return list(torch._foreach_add(torch._foreach_neg(args[1]), args[0]))
    count = next(len(x) for x in args if isinstance(x, list))
    first = next(x for x in args if isinstance(x, list))
    rows = [
        [x[i] if isinstance(x, list) else _as_tensor(op, x, first[i]) for x in args] for i in range(count)
    ]
    return [SINGLE[op](*row) for row in rows]


def _as_tensor(op: str, x: float, like: Tensor) -> Any:
    return torch.full_like(like, x) if op in ("max", "min", "where") else x
