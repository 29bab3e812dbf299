"""Scaling rules as text: "lr ~ B^0.5 D^-0.5, B ~ D^0.571" becomes exact exponents.

A rule is a list of clauses `variable ~ monomial` (also ∝, or = where the coefficient matters). Exponents are kept
as fractions so that what is concluded from them can be proved rather than approximated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from metaopt_hpo.theory._notation import plain

SCALES = {"tokens": "D", "width": "n", "depth": "l", "size": "N"}
"""What may grow, and the letter it is written with."""
CONTROLS = {"lr": "lr", "momentum": "a", "batch": "B"}

_ALIASES = {
    "lr": "lr LR eta η learning_rate",
    "momentum": "a momentum",
    "batch": "B batch batch_size",
    "tokens": "D tokens",
    "width": "n width",
    "depth": "l depth layers",
    "size": "N size",
    "smoothness": "L smoothness",
    "delta": "Δ delta",
    "noise": "σ rs noise",
    "e0": "E0 e0",
}
_NAMES = {alias: name for name, aliases in _ALIASES.items() for alias in aliases.split()}
_TOKEN = re.compile(
    r"\s*(?:(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|([^\W\d]\w*)|(\*\*|[-+^*/()√]))"
)
_SYNTAX = (
    "write clauses such as 'lr ~ B^0.5 D^-0.5, B ~ D^0.571' (variables lr, a, B; scales D, n, l, N; K is D/B)"
)
MAX_EXPONENT = 100
"""Larger exponents are slips of the pen, and their powers overflow."""


@dataclass(frozen=True, slots=True)
class Monomial:
    """coefficient · Π variable^exponent."""

    powers: Mapping[str, Fraction] = field(default_factory=dict)
    coefficient: float = 1.0

    def __mul__(self, other: Monomial) -> Monomial:
        powers = dict(self.powers)
        for name, power in other.powers.items():
            powers[name] = powers.get(name, Fraction(0)) + power
        return Monomial({n: p for n, p in powers.items() if p}, self.coefficient * other.coefficient)

    def __pow__(self, power: Fraction) -> Monomial:
        return Monomial({n: p * power for n, p in self.powers.items()}, float(self.coefficient**power))

    def substitute(self, name: str, value: Monomial) -> Monomial:
        """Replace a variable by a monomial."""
        power = self.powers.get(name)
        if power is None:
            return self
        rest = Monomial({n: p for n, p in self.powers.items() if n != name}, self.coefficient)
        return rest * value**power


@dataclass(frozen=True, slots=True)
class Clause:
    """One statement: `name` follows `value`; `exact` when its coefficient is part of the statement."""

    name: str
    value: Monomial
    exact: bool


def parse_rule(text: str) -> dict[str, Clause]:
    """Parse clauses separated by commas or semicolons, keyed by canonical variable name.

    Powers may be decimals, fractions ("D^-1/4" reads as D^(-1/4)) or arithmetic in brackets ("D^((0.571-1)/2)");
    sqrt(…) and √(…) work; juxtaposition multiplies. Pasted signs are understood: unicode minus, ×, superscripts, LaTeX.

    Raises:
        ValueError: quoting what could not be read and showing what a rule looks like.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the rule is empty: {_SYNTAX}")
    clauses: dict[str, Clause] = {}
    for part in re.split(r"[,;]", plain(text).strip().rstrip(",;.")):
        if not part.strip():
            raise ValueError(f"empty clause in rule {text!r}: {_SYNTAX}")
        sides = re.split(r"~|∝|=", part)
        if len(sides) != 2:
            raise ValueError(f"clause {part.strip()!r} needs exactly one of ~, ∝ or =: {_SYNTAX}")
        # η* and η^* are names for the optimum, not powers or products.
        name = _canonical(re.sub(r"\s*\^?\s*\*+$", "", sides[0].strip()), part)
        if name in SCALES:
            raise ValueError(f"clause {part.strip()!r} sets {name}, which is given, not chosen: {_SYNTAX}")
        if name in clauses:
            raise ValueError(f"rule {text!r} states {name} twice: keep one clause for it")
        exact = "=" in part
        value = _Reader(sides[1], part).read()
        if not exact and value.coefficient != 1.0:
            raise ValueError(
                f"clause {part.strip()!r} has a coefficient: write = where it is meant, or drop it"
            )
        if not (value.coefficient > 0 and math.isfinite(value.coefficient)):
            raise ValueError(
                f"clause {part.strip()!r} needs a positive, finite coefficient, got {value.coefficient:g}"
            )
        if name in value.powers:
            raise ValueError(f"clause {part.strip()!r} defines {name} by itself")
        clauses[name] = Clause(name, value, exact)
    return clauses


def resolve(clauses: Mapping[str, Clause]) -> dict[str, Monomial]:
    """Express every clause in the scales alone, by substituting batch and momentum where they appear.

    A control that the clauses leave open is held fixed, so it drops out.

    Raises:
        ValueError: circular clauses, or a right-hand side that holds lr or a constant of the bound.
    """
    resolved: dict[str, Monomial] = {}
    for name, clause in clauses.items():
        value = clause.value
        for _ in range(len(CONTROLS) + 1):
            for control in CONTROLS:
                if control in value.powers:
                    inner = clauses[control].value if control in clauses else Monomial()
                    if control == name or (name in inner.powers):
                        raise ValueError(
                            f"{name} and {control} are defined by each other: state one of them in D"
                        )
                    value = value.substitute(control, inner)
        bad = [n for n in value.powers if n not in SCALES]
        if any(n in CONTROLS for n in bad):
            raise ValueError(
                f"the clauses for {name} and {bad[0]} are defined by each other: state one of them in D"
            )
        if bad:
            raise ValueError(
                f"the clause for {name} may hold B, a and the scales D, n, l, N only, found {bad[0]}"
            )
        resolved[name] = value
    return resolved


def _canonical(name: str, part: str) -> str:
    name = re.sub(r"\s+", "_", name)
    if name in ("beta", "beta1", "β", "β1", "β₁"):
        raise ValueError(
            f"clause {part.strip()!r}: state momentum as a = 1 − β₁, the weight of the new gradient"
        )
    if name in ("log", "ln", "exp", "min", "max"):
        raise ValueError(
            f"{name} in {part.strip()!r} is no power law, and exponents are all a rule has here: {_SYNTAX}"
        )
    if name not in _NAMES:
        raise ValueError(f"unknown variable {name!r} in {part.strip()!r}: {_SYNTAX}")
    return _NAMES[name]


class _Reader:
    """Recursive descent over one right-hand side."""

    def __init__(self, text: str, part: str) -> None:
        self.part = part.strip()
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if not match:
                raise ValueError(f"cannot read {text[at:].strip()!r} in {self.part!r}: {_SYNTAX}")
            kind = "number" if match[1] else "name" if match[2] else "sign"
            self.tokens.append((kind, match[1] or match[2] or match[3]))
            at = match.end()
        self.at = 0

    def read(self) -> Monomial:
        try:
            value = self._product()
        except (ZeroDivisionError, OverflowError):
            raise ValueError(f"a coefficient in {self.part!r} divides by 0 or overflows: {_SYNTAX}") from None
        if self.at < len(self.tokens):
            raise self._error()
        return value

    def _kind(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def _peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def _taken(self, *signs: str) -> str:
        """The next token if it is one of `signs`, which is then read; else nothing."""
        found = self._peek() if self._kind() == "sign" and self._peek() in signs else ""
        self.at += bool(found)
        return found

    def _error(self) -> ValueError:
        hint = ""
        if self._peek() in ("+", "-"):
            hint = " (a sum is no power law, and a negative power is written D^-0.5)"
        return ValueError(f"cannot read {self._peek() or 'the end'!r} in {self.part!r}{hint}: {_SYNTAX}")

    def _product(self) -> Monomial:
        value = self._power()
        while self.at < len(self.tokens) and self._peek() not in (")", "+", "-"):
            sign = self._taken("*", "/")
            if not sign and self._kind() == "number":
                raise ValueError(
                    f"{self._peek()} in {self.part!r} is neither a power nor a factor: write ^ or * before it"
                )
            factor = self._power()
            value = value * (factor ** Fraction(-1) if sign == "/" else factor)
        return value

    def _power(self) -> Monomial:
        base = self._atom()
        return base ** self._exponent() if self._taken("^", "**") else base

    def _atom(self) -> Monomial:
        kind, text = self._kind(), self._peek()
        if kind not in ("number", "name") and text not in ("√", "("):
            raise self._error()
        self.at += 1
        if kind == "number":
            return Monomial({}, float(text))
        if text in ("√", "sqrt"):
            return self._atom() ** Fraction(1, 2)
        if text in ("K", "steps"):
            return Monomial({"tokens": Fraction(1), "batch": Fraction(-1)})
        if kind == "name":
            return Monomial({_canonical(text, self.part): Fraction(1)})
        value = self._product()
        self._expect(")")
        return value

    def _exponent(self) -> Fraction:
        sign = -1 if self._taken("-", "+") == "-" else 1
        if self._peek() == "(":
            value = self._arithmetic_atom()
        else:
            value = self._number()
            # Only a number after the slash makes a fraction: "D^-1/4" is a quarter, "D^-1/B" divides by B.
            below = self.tokens[self.at + 1][0] if self.at + 1 < len(self.tokens) else ""
            if self._peek() == "/" and below == "number":
                self.at += 1
                value = self._divided(value, self._number())
        if abs(value) > MAX_EXPONENT:
            raise ValueError(f"an exponent in {self.part!r} exceeds {MAX_EXPONENT}: {_SYNTAX}")
        return sign * value

    def _arithmetic(self) -> Fraction:
        """A sum of products of numbers, as exponents in brackets may be."""
        value = self._arithmetic_product()
        while sign := self._taken("+", "-"):
            term = self._arithmetic_product()
            value += term if sign == "+" else -term
        return value

    def _arithmetic_product(self) -> Fraction:
        value = self._arithmetic_atom()
        while sign := self._taken("*", "/"):
            factor = self._arithmetic_atom()
            value = value * factor if sign == "*" else self._divided(value, factor)
        return value

    def _arithmetic_atom(self) -> Fraction:
        if sign := self._taken("-", "+"):
            return -self._arithmetic_atom() if sign == "-" else self._arithmetic_atom()
        if not self._taken("("):
            return self._number()
        value = self._arithmetic()
        self._expect(")")
        return value

    def _divided(self, value: Fraction, below: Fraction) -> Fraction:
        if below == 0:
            raise ValueError(f"an exponent in {self.part!r} divides by 0: {_SYNTAX}")
        return value / below

    def _number(self) -> Fraction:
        if self._kind() == "name":
            raise ValueError(f"the exponent {self._peek()!r} in {self.part!r} must be a number: {_SYNTAX}")
        if self._kind() != "number":
            raise self._error()
        if len(self._peek()) > 40 or abs(float(self._peek())) > 1e6:
            raise ValueError(f"an exponent in {self.part!r} exceeds {MAX_EXPONENT}: {_SYNTAX}")
        self.at += 1
        return Fraction(self.tokens[self.at - 1][1])

    def _expect(self, sign: str) -> None:
        if self._peek() != sign:
            raise self._error()
        self.at += 1
