"""Rates of rules and the best rates there are: the bound's terms as linear programs over exponents.

Along a scale every term is affine in the exponents of (lr, momentum, batch). A star-convex bound has one term that is
not a monomial, Δ·exp(−ηK/R): with ηK growing it vanishes (up to a logarithm at ηK ~ 1), with ηK falling it stays at Δ.
Both regimes are programs of their own, and the better one counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from metaopt_hpo.theory._linear_program import Row, Solution, minimax
from metaopt_hpo.theory.terms import Term

FAR = Fraction(10**9)
"""Stands for infinity where a face is unbounded: momentum trades against lr for ever, or any smaller lr stalls too."""
_ZERO, _ONE = Fraction(0), Fraction(1)


@dataclass(frozen=True, slots=True)
class Rates:
    """The terms of one bound along one scale.

    Args:
        terms: monomials.
        offset: exponent of each term in the scale at lr ~ a ~ B ~ 1, constants and tokens included.
        growth: exponent of the tokens in the scale: 1 along tokens, 0 along width, depth and size.
        stall: exponent of Δ where the bound needs ηK to grow (star-convex), else None.
    """

    terms: tuple[Term, ...]
    offset: Mapping[str, Fraction]
    growth: Fraction
    stall: Fraction | None

    @property
    def lr_terms(self) -> Rates:
        """The same with the terms that hold lr alone."""
        return Rates(tuple(t for t in self.terms if t.lr), self.offset, self.growth, self.stall)

    def of(self, own: Mapping[str, Fraction]) -> Fraction:
        """Rate of a rule with these exponents: its slowest term."""
        rates = [self.at(t, own) for t in self.terms]
        if self.stall is not None and own["lr"] + self.growth - own["batch"] < 0:
            rates.append(self.stall)
        return max(rates)

    def at(self, term: Term, own: Mapping[str, Fraction]) -> Fraction:
        """Exponent of one term at a rule."""
        return (
            term.lr * own["lr"]
            + term.momentum * own["momentum"]
            + term.batch * own["batch"]
            + self.offset[term.name]
        )

    def best(self, *, momentum: Fraction | None = None, batch: Fraction | None = None) -> Solution:
        """The best lr, and momentum and batch where they are not given; vertices are (lr, momentum?, batch?)."""
        if self.stall is None:
            return self._program(momentum, batch, None)
        found = [self._program(momentum, batch, moving) for moving in (True, False)]
        value = min(f.value for f in found)
        mine = [f for f in found if f.value == value]
        vertices = tuple(sorted({v for f in mine for v in f.vertices}))
        return Solution(value, vertices, mine[0].certificate)

    def _program(self, momentum: Fraction | None, batch: Fraction | None, moving: bool | None) -> Solution:
        free = [n for n, v in (("momentum", momentum), ("batch", batch)) if v is None]
        held = {"momentum": momentum or _ZERO, "batch": batch or _ZERO}

        def row(lr: Fraction, a: Fraction, b: Fraction) -> Row:
            return (lr, *({"momentum": a, "batch": b}[n] for n in free))

        def known(a: Fraction, b: Fraction) -> Fraction:
            return sum((c * held[n] for n, c in (("momentum", a), ("batch", b)) if n not in free), _ZERO)

        rows = [
            (t.name, row(t.lr, t.momentum, t.batch), self.offset[t.name] + known(t.momentum, t.batch))
            for t in self.terms
        ]
        limits = []
        if moving:
            limits.append(("ηK >= 1", row(-_ONE, _ZERO, _ONE), self.growth - known(_ZERO, _ONE)))
        elif moving is False and self.stall is not None:
            rows.append(("start", row(_ZERO, _ZERO, _ZERO), self.stall))
            limits.append(("ηK <= 1", row(_ONE, _ZERO, -_ONE), known(_ZERO, _ONE) - self.growth))
        if self.growth and "momentum" in free:
            limits += [
                ("a <= 1", row(_ZERO, _ONE, _ZERO), _ZERO),
                ("aK >= 1", row(_ZERO, -_ONE, _ONE), self.growth - known(-_ONE, _ONE)),
            ]
        if self.growth and "batch" in free:
            limits += [("B >= 1", row(_ZERO, _ZERO, -_ONE), _ZERO), ("B <= D", row(_ZERO, _ZERO, _ONE), _ONE)]
        # Along width, depth or size the other scales are large, so that a <= 1 and aK >= 1 are slack there.
        boxed = ["lr"] if moving is False else []
        boxed += ["lr", "momentum"] if not self.growth and "momentum" in free else []
        for name in dict.fromkeys(boxed):
            for sign in (_ONE, -_ONE):
                one = {"lr": _ZERO, "momentum": _ZERO, name: sign}
                limits.append((f"|{name}| < ∞", row(one["lr"], one["momentum"], _ZERO), FAR))
        return minimax(rows, limits, 1 + len(free))


def number(exponent: Fraction) -> float:
    """An exponent as a float; infinite where its face is."""
    if abs(exponent) * 1000 >= FAR:
        return float("inf") if exponent > 0 else float("-inf")
    return float(exponent)
