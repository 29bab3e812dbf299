"""A described rule in C, in Triton, and in torch's multi-tensor operations.

What depends on numbers alone is computed once, in double precision; the rest for every element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim.kernels.describe import EVALUATED, NotDescribed, Program

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
