"""The constant factor of a rule: a number computed from the bound at finite sizes, no statement about exponents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy.optimize import minimize_scalar

from metaopt_hpo.theory.bounds import LMOBound
from metaopt_hpo.theory.rules import Monomial

CHECK_TOKENS = (1e8, 1e14)
"""Token range over which the constant factor is computed: from small proxies to the largest runs of today."""
CHECK_MOMENTUM = 0.1
"""Momentum a held in that computation where the rule names none: β₁ = 0.9."""


@dataclass(frozen=True, slots=True)
class Factor:
    """Bound at the rule over the bound at the best lr with the same momentum and batch, worst over `CHECK_TOKENS`."""

    value: float
    where: str
    """Momentum, batch and tokens at which it was computed; what the rule leaves open is in brackets."""


def constant_factor(
    bound: LMOBound, own: Mapping[str, Fraction], solved: Mapping[str, Monomial], *, stated: bool
) -> Factor:
    """The factor; the rule's coefficient of lr is tuned unless `stated`.

    Args:
        own: the rule's exponents of lr, momentum and batch in tokens.
        solved: every clause in the scales alone, with its coefficient.
    """
    tokens = np.geomspace(*CHECK_TOKENS, 61)
    scale = {n: m.coefficient for n, m in solved.items()}
    a0, b0 = scale.get("momentum", CHECK_MOMENTUM), scale.get("batch", 1.0)
    batch = np.clip(b0 * tokens ** float(own["batch"]), 1.0, tokens)
    momentum = np.clip(a0 * tokens ** float(own["momentum"]), batch / tokens, 1.0)
    steps = tokens / batch
    best = bound.value(bound.best_lr(momentum, batch, steps), momentum, batch, steps)
    shape = tokens ** float(own["lr"])

    def worst(log_coefficient: float) -> float:
        with np.errstate(over="ignore"):
            return float(np.max(bound.value(np.exp(log_coefficient) * shape, momentum, batch, steps) / best))

    if stated:
        value = worst(float(np.log(scale["lr"])))
    else:
        centre = np.log(bound.best_lr(momentum, batch, steps) / shape)
        limits = (float(centre.min()) - 1, float(centre.max()) + 1)
        value = float(minimize_scalar(worst, bounds=limits, method="bounded").fun)
    parts = [
        _text("a", a0, own["momentum"], "momentum" in scale),
        _text("B", b0, own["batch"], "batch" in scale),
    ]
    return Factor(value, f"{parts[0]}, {parts[1]}, D = {CHECK_TOKENS[0]:g} to {CHECK_TOKENS[1]:g}")


def _text(name: str, coefficient: float, power: Fraction, given: bool) -> str:
    text = f"{name} = {coefficient:g}" + (f"·D^{float(power):g}" if power else "")
    return text if given else f"({text})"
