"""Exponents of the optimal lr, momentum and batch that a bound predicts, on its asymptotes and off them.

Those of arXiv 2603.15958's bound, derived again in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.theory.bounds import Kind, LMOBound

Array = NDArray[np.float64]
Momentum = Literal["fixed", "tuned", "proportional"]


@dataclass(frozen=True, slots=True)
class PredictedExponents:
    """η* ~ D^x · B^y in one regime of a bound, and the loss-optimal batch and momentum there (derived).

    Examples:
        >>> from metaopt_hpo.theory import predicted_exponents
        >>> p = predicted_exponents()
        >>> p.x, p.y
        (-0.5, 0.5)
    """

    x: float
    y: float
    batch: float | None
    """Exponent of the optimal batch in D; None where the bound leaves it open (a ridge)."""
    valid: str
    """Where it holds."""

    def along(self, b: float) -> float:
        """Exponent of lr in D along B ~ D^b."""
        return self.x + b * self.y


def predicted_exponents(
    kind: Kind = "nonconvex",
    *,
    momentum: Momentum = "fixed",
    large_batch: bool = False,
    q: float = 0.5,
    source: float | None = None,
    capacity: float | None = None,
) -> PredictedExponents:
    """Asymptotic exponents of a bound's optimal lr.

    Args:
        kind: as in `LMOBound`; frank-wolfe has nonconvex's exponents.
        momentum: fixed a; tuned a at every (B, D) (simplified form); or proportional, a ~ B < 1.
        large_batch: tuned momentum above the critical batch, where a = 1.
        q: noise exponent; it moves the tuned regime and the optimal batch only.
        source, capacity: s and r of the power-law proxy.

    Raises:
        ValueError: a regime the bounds do not settle, or a power law without s and r.

    Examples:
        >>> from metaopt_hpo.theory import predicted_exponents
        >>> predicted_exponents("nonconvex").along(0.5)
        -0.25
    """
    # Validates kind, q, source and capacity in one place.
    bound = LMOBound(1.0, 1.0, 1.0, q=q, kind=kind, source=source, capacity=capacity)
    if momentum not in ("fixed", "tuned", "proportional"):
        raise ValueError(f"momentum must be fixed, tuned or proportional, got {momentum!r}")
    if bound.kind == "power-law":
        s, r = bound.source or 0.0, bound.capacity or 0.0
        if momentum != "fixed":
            raise ValueError(
                "the power-law proxy predicts lr at fixed momentum; its loss is flat in momentum"
            )
        x = (2 * q) / (1 + s + r) - 1
        return PredictedExponents(x, 1 - q, None, "noise-dominated steps (heuristic)")
    if bound.kind == "star-convex":
        if momentum != "fixed":
            raise ValueError(
                "star-convex exponents are derived at fixed momentum; use local_exponents elsewhere"
            )
        return PredictedExponents(-1.0, 1.0, 1 / (1 + q), "fixed momentum, up to a logarithm")
    if momentum == "proportional":
        return PredictedExponents(-0.5, 1.0, None, "a ~ B, a < 1")
    if momentum == "fixed" or large_batch:
        optimal = 1 / (2 * q + 1) if momentum == "fixed" else None
        return PredictedExponents(-0.5, 0.5, optimal, "fixed momentum" if optimal else "B > B_c, a = 1")
    return PredictedExponents(
        -(q + 1) / (2 * q + 1), 1.0, None, "B well below B_c (0.01 B_c), tuned momentum"
    )


@dataclass(frozen=True, slots=True)
class LocalExponents:
    """Slopes of the bound's own optimum at one point: what the asymptote becomes at finite size (checked).

    Examples:
        >>> from metaopt_hpo.theory import LMOBound, local_exponents
        >>> e = local_exponents(LMOBound(1.0, 1.0, 1.0), tokens=1e9, batch=1e5)
        >>> e.x < 0
        True
    """

    x: float
    """d ln η* / d ln D at fixed B."""
    y: float
    """d ln η* / d ln B at fixed D."""
    momentum_tokens: float
    momentum_batch: float


def local_exponents(
    bound: LMOBound, tokens: float, batch: float, *, momentum: float | None = None, step: float = 0.05
) -> LocalExponents:
    """Central differences of ln η* and ln a* in ln D and ln B.

    Args:
        momentum: held at this value; None tunes it at every point.
        step: half-width in natural logarithm; 0.05 is narrow against the bends of the bounds.

    Raises:
        ValueError: batch · e^step beyond tokens · e^-step.

    Examples:
        >>> from metaopt_hpo.theory import LMOBound, local_exponents
        >>> round(local_exponents(LMOBound(1.0, 1.0, 1.0), tokens=1e9, batch=1e5, momentum=0.9).x, 1)
        -0.5
    """

    def logs(d: float, b: float) -> Array:
        best = bound.optimum(tokens * np.exp(d), batch=batch * np.exp(b), momentum=momentum)
        return np.log([best.lr, best.momentum])

    along_d = (logs(step, 0.0) - logs(-step, 0.0)) / (2 * step)
    along_b = (logs(0.0, step) - logs(0.0, -step)) / (2 * step)
    return LocalExponents(float(along_d[0]), float(along_b[0]), float(along_d[1]), float(along_b[1]))
