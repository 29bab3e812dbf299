"""Check a proposed scaling rule against a bound, by an exact linear program over exponents.

In logarithms every term of a bound is affine in the exponents θ of (lr, momentum, batch), so the best rate along a
scale solves min_θ max_j (a_j·θ + b_j) subject to a <= 1, 1 <= B <= D and aK >= 1.

Width and depth rules need to know how the bound's constants move: `path="L ~ n^2"` (Adam under muP's norms),
`"L ~ n^0"` (Muon in the spectral norm), `depth_path(c)` for residual branches multiplied by depth^-c. Published rules
checked in the tests: arXiv 2603.15958 and the sources named in `exponents.published_exponents`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from metaopt_hpo.theory._constant import constant_factor
from metaopt_hpo.theory._rates import Rates, number
from metaopt_hpo.theory.bounds import LMOBound
from metaopt_hpo.theory.rule_check import RuleCheck
from metaopt_hpo.theory.rules import CONTROLS, SCALES, Clause, Monomial, parse_rule, resolve
from metaopt_hpo.theory.terms import exact, monomials

WIDTH_ADAM = "L ~ n^2"
"""Smoothness of Adam-like (max-norm) steps in width n: n² entries add up. Gives muP's lr ~ 1/n at fixed momentum."""
WIDTH_MUON = "L ~ n^0"
"""Smoothness in the width-normalised spectral norm does not grow: Muon's lr does not move with width."""


def depth_path(multiplier: float) -> str:
    """Path of a network of depth l whose residual branches are multiplied by l^-c: L ~ l^(2(1−c)), so lr ~ l^(c−1).

    Examples:
        >>> from metaopt_hpo.theory import LMOBound, depth_path, verify_rule
        >>> verify_rule("lr ~ l^-1", LMOBound(1.0, 1.0, 1.0), depth_path(0.5)).scale
        'depth'
    """
    return f"L ~ l^{float(2 * (1 - exact(multiplier)))}"


def verify_rule(
    rule: str, bound: LMOBound, path: str | Mapping[str, float] | None = None, *, along: str | None = None
) -> RuleCheck:
    """Check a rule such as "lr ~ B^0.5 D^-0.5, B ~ D^0.571" against a bound.

    Args:
        rule: clauses for lr and, if they scale, B and a; "=" instead of "~" states a coefficient too.
        bound: the bound; its form is part of the answer.
        path: how everything else moves: batch or momentum the rule leaves open ("B ~ D^0.5") and the bound's constants
            ("L ~ n^2"). A mapping gives exponents of D: {"B": 0.5}. Default: all held fixed.
        along: the scale to check along; default tokens when the rule or path holds D, else its only other scale.

    Raises:
        ValueError: a rule that cannot be parsed, no clause for lr, a batch that outgrows the tokens, momentum leaving
            (0, 1] or outliving the run, or a width, depth or size rule without a path for the constants.

    Examples:
        >>> from metaopt_hpo.theory import LMOBound, verify_rule
        >>> verify_rule("lr ~ D^-0.307, B ~ D^0.571", LMOBound(1.0, 1.0, 1.0)).verdict
        'misaligned'
    """
    clauses = parse_rule(rule)
    if "lr" not in clauses:
        raise ValueError(f"rule {rule!r} says nothing about lr: add a clause such as 'lr ~ D^-0.5'")
    outside = [n for n in clauses if n not in CONTROLS]
    if outside:
        raise ValueError(f"rule {rule!r} sets {outside[0]}, a constant of the bound: state that in path")
    surroundings, path_text = _path(path)
    for name in surroundings:
        if name in clauses or name == "lr":
            raise ValueError(f"path states {name}, which is the rule's: keep one of the two")
    solved = resolve({**clauses, **surroundings})
    named = [s for s in SCALES if any(s in m.powers for m in solved.values())]
    known = [s for s in named if s == "tokens" or any(s in c.value.powers for c in surroundings.values())]
    if not named:
        named = known = ["tokens"]
    if along is not None:
        if along not in SCALES:
            raise ValueError(f"along must be one of {', '.join(SCALES)}, got {along!r}")
        known = [along] + [s for s in known if s != along]
    if not known:
        letter = SCALES[named[0]]
        raise ValueError(
            f"rule {rule!r} scales with {named[0]} but nothing says how the bound's constants do: "
            f"give a path such as 'L ~ {letter}^2', or 'L ~ {letter}^0' where they do not"
        )
    notes = tuple(
        f"{SCALES[s]} not checked: no path says how the bound's constants move with it"
        for s in named
        if s not in known
    )
    checks = [
        _check(rule, path_text, bound, solved, clauses["lr"].exact, s, notes if i == 0 else ())
        for i, s in enumerate(known)
    ]
    return replace(checks[0], also=tuple(checks[1:]))


def rate_loss_profile(rule: str, bound: LMOBound, *, points: int = 21) -> list[tuple[float, RuleCheck]]:
    """The check at each batch exponent b in [0, 1], for rules that leave the batch open.

    Raises:
        ValueError: the rule states its own batch.

    Examples:
        >>> from metaopt_hpo.theory import LMOBound, rate_loss_profile
        >>> len(rate_loss_profile("lr ~ D^-0.5", LMOBound(1.0, 1.0, 1.0), points=3))
        3
    """
    if "batch" in parse_rule(rule):
        raise ValueError(f"rule {rule!r} states its batch, so there is no profile over b")
    exponents = [Fraction(i, points - 1) for i in range(points)]
    return [(float(b), verify_rule(rule, bound, f"B ~ D^{b.numerator}/{b.denominator}")) for b in exponents]


def _check(
    rule: str,
    path: str,
    bound: LMOBound,
    solved: Mapping[str, Monomial],
    stated: bool,
    scale: str,
    notes: tuple[str, ...],
) -> RuleCheck:
    own = {n: solved[n].powers.get(scale, Fraction(0)) if n in solved else Fraction(0) for n in CONTROLS}
    drift = {n: m.powers.get(scale, Fraction(0)) for n, m in solved.items() if n not in CONTROLS}
    growth = Fraction(1) if scale == "tokens" else Fraction(0)
    if scale == "tokens":
        _feasible(rule, own, {n: solved[n].coefficient for n in own if n in solved})
    terms, decaying = monomials(bound)
    offset = {
        t.name: growth * t.tokens + sum(drift.get(n, 0) * e for n, e in t.constants.items()) for t in terms
    }
    rates = Rates(tuple(terms), offset, growth, drift.get("delta", Fraction(0)) if decaying else None)
    if decaying and scale == "tokens" and own["lr"] + growth == own["batch"]:
        notes = (
            *notes,
            "up to a logarithm: with lr ~ B/D exactly a fixed share of Δ remains, lr ~ (B/D)·ln D removes it",
        )

    free = rates.best(batch=None if scale == "tokens" else own["batch"])
    held = rates.best(momentum=own["momentum"], batch=own["batch"])
    held_lr = rates.lr_terms.best(momentum=own["momentum"], batch=own["batch"])
    rule_rate, lr_rate = rates.of(own), rates.lr_terms.of(own)
    interval = (min(v[0] for v in held.vertices), max(v[0] for v in held.vertices))

    names = [n for n in CONTROLS if n != "batch"] if scale != "tokens" else list(CONTROLS)
    vertices = tuple({n: number(v) for n, v in zip(names, vertex, strict=True)} for vertex in free.vertices)
    face = {n: (min(v[n] for v in vertices), max(v[n] for v in vertices)) for n in names}
    constant = (
        constant_factor(bound, own, solved, stated=stated)
        if scale == "tokens" and not any(drift.values())
        else None
    )
    at_zero = {**own, "lr": Fraction(0)}
    return RuleCheck(
        rule=rule,
        path=path,
        bound=bound,
        scale=scale,
        exponents={n: float(e) for n, e in own.items()},
        rate=float(free.value),
        face=face,
        vertices=vertices,
        rule_rate=float(rule_rate),
        rate_held=float(held.value),
        rate_loss=float(rule_rate - held.value),
        rate_loss_free=float(rule_rate - free.value),
        rate_loss_lr_terms=float(lr_rate - held_lr.value),
        lr_interval=(number(interval[0]), number(interval[1])),
        identified=interval[0] == interval[1],
        label="checked" if bound.status == "heuristic" else "proved",
        constant_factor=constant,
        certificate=free.certificate,
        lines=tuple((t.name, float(t.lr), float(rates.at(t, at_zero))) for t in terms),
        notes=notes,
    )


def _feasible(rule: str, own: Mapping[str, Fraction], coefficient: Mapping[str, float]) -> None:
    a, b = own["momentum"], own["batch"]
    ca, cb = coefficient.get("momentum", 0.0), coefficient.get("batch", 1.0)
    if b > 1 or b < 0:
        raise ValueError(f"batch ~ D^{float(b):g} leaves 1 <= B <= D in rule {rule!r}: b must lie in [0, 1]")
    if (b == 1 and cb > 1) or (b == 0 and cb < 1):
        raise ValueError(f"batch = {cb:g}{' D' if b else ''} leaves 1 <= B <= D in rule {rule!r}")
    if a > 0:
        raise ValueError(
            f"momentum a ~ D^{float(a):g} leaves (0, 1] in rule {rule!r}: its exponent must be <= 0"
        )
    if a == 0 and ca > 1:
        raise ValueError(f"momentum a = {ca:g} leaves (0, 1] in rule {rule!r} (it is 1 − β₁)")
    if a + 1 - b < 0 or (a + 1 - b == 0 and 0 < ca < cb):
        raise ValueError(
            f"momentum a ~ D^{float(a):g} outlives the run in rule {rule!r}: aK >= 1 needs a >= B/D"
        )


def _path(path: str | Mapping[str, float] | None) -> tuple[dict[str, Clause], str]:
    if path is None:
        return {}, ""
    text = path if isinstance(path, str) else ", ".join(f"{n} ~ D^{exact(v)}" for n, v in path.items())
    return parse_rule(text), text
