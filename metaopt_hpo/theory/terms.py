"""The bounds of `bounds` as sums of monomials, which in logarithms are linear: what the linear program works on.

Derived; constants and logarithms are dropped, so every statement made from these terms is one about exponents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from metaopt_hpo.theory.bounds import LMOBound


def exact(number: float) -> Fraction:
    """The decimal a user wrote, as a fraction (0.571 → 571/1000, not its binary neighbour)."""
    return Fraction(str(number))


@dataclass(frozen=True, slots=True)
class Term:
    """One monomial: exponents of lr, momentum, batch, tokens and the bound's constants."""

    name: str
    lr: Fraction = Fraction(0)
    momentum: Fraction = Fraction(0)
    batch: Fraction = Fraction(0)
    tokens: Fraction = Fraction(0)
    constants: Mapping[str, Fraction] = field(default_factory=dict)


def monomials(bound: LMOBound) -> tuple[list[Term], bool]:
    """Terms of a bound, and whether it needs ηK ≳ 1 besides (star-convex: the exponential must have decayed)."""
    one, q = Fraction(1), exact(bound.q)
    noise = Term("noise", momentum=q, batch=-q, constants={"noise": one})
    if bound.kind == "power-law":
        return _proxy(bound, q), False
    drift = Term("drift", lr=one, momentum=-one, constants={"smoothness": one})
    terms = [drift, noise] if bound.noise > 0 else [drift]
    if bound.form != "simplified":
        terms.append(Term("descent", lr=one, constants={"smoothness": one}))
    star = bound.kind == "star-convex"
    if not star:
        terms.insert(0, Term("start", lr=-one, batch=one, tokens=-one, constants={"delta": one}))
        if bound.e0 > 0:
            terms.append(Term("momentum", momentum=-one, batch=one, tokens=-one, constants={"e0": one}))
        if bound.init == "first-gradient" and bound.noise > 0:
            terms.append(
                Term("momentum", momentum=-one, batch=one - q, tokens=-one, constants={"noise": one})
            )
    return terms, star


def _proxy(bound: LMOBound, q: Fraction) -> list[Term]:
    s, r = exact(bound.source or 0), exact(bound.capacity or 0)
    one = Fraction(1)
    # τ = L·η·(B/a)^q/rs·D/B, so one unit of each exponent of τ is:
    tau = Term("τ", one, -q, q - one, one, {"smoothness": one, "noise": -one})

    def power(name: str, p: Fraction, tokens: Fraction, constants: Mapping[str, Fraction]) -> Term:
        merged = {n: p * e for n, e in tau.constants.items()}
        for n, e in constants.items():
            merged[n] = merged.get(n, Fraction(0)) + e
        return Term(name, p * tau.lr, p * tau.momentum, p * tau.batch, p * tau.tokens + tokens, merged)

    bias = power("bias", -s, Fraction(0), {"delta": one})
    return [bias, power("variance", one + r, -2 * q, {"noise": 2 * one, "smoothness": -one})]
