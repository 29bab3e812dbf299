"""The loss floor over size and tokens: exp F = E + A·N^-α + C·D^-β (Hoffmann et al. 2022, eq. 2).

Fitted by variable projection: E, A and C are non-negative linear coefficients, solved exactly for every (α, β);
parabolas of argmins ("Approach 2") are biased even without noise and are not used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, nnls

from metaopt_hpo.scaling.surface import Array

EXPONENT_MEAN = 0.35
EXPONENT_SPREAD = 0.5
"""Log-normal prior on α and β (published values lie in 0.25–0.5); it matters only where cells are few."""


@dataclass(frozen=True)
class Floor:
    """E, then (coefficient, exponent) of each power term, for values relative to `centre` (ln).

    Attributes:
        names: which of size and tokens the terms are in.
        centre: ln of the value at which a term equals its coefficient.
        level: E.
        coefficient, exponent: one of each per name.
        scatter: robust standard deviation of the cells about the fit, ln loss.
    """

    names: tuple[str, ...]
    centre: Array
    level: float
    coefficient: Array
    exponent: Array
    scatter: float

    def log_loss(self, size: Array | float, tokens: Array | float) -> Array:
        """F(N, D), ln loss at the optimum."""
        size, tokens = np.broadcast_arrays(np.asarray(size, dtype=float), np.asarray(tokens, dtype=float))
        total = np.full(size.shape, self.level)
        for name, c, k, e in zip(self.names, self.centre, self.coefficient, self.exponent, strict=True):
            t = np.log(size if name == "size" else tokens) - c
            total = total + k * np.exp(-e * t)
        return np.asarray(np.log(total))


def fit_floor(
    names: tuple[str, ...],
    log_size: Array,
    log_tokens: Array,
    log_loss: Array,
    weight: Array,
    *,
    start: Floor | None = None,
    noise: float = 1e-3,
) -> Floor:
    """Fit the floor to cells.

    Args:
        names: terms to use, of "size" and "tokens".
        log_size, log_tokens, log_loss, weight: one value a cell.
        start: where the exponents start (a bootstrap's point estimate).
        noise: ln-loss scale below which a cell's deviation costs as a square, above it as a line.
    """
    loss = np.exp(log_loss)
    axes = {"size": log_size, "tokens": log_tokens}
    centre = np.array([float(np.mean(axes[n])) for n in names])
    t = np.stack([axes[n] - c for n, c in zip(names, centre, strict=True)], axis=1)
    root = np.sqrt(weight)

    def linear(exponent: Array, w: Array) -> tuple[Array, Array]:
        basis = np.column_stack([np.ones(loss.size), np.exp(-exponent * t)])
        scaled = basis / loss[:, None] * w[:, None]
        coef, _ = nnls(scaled, w)
        return coef, basis @ coef / loss - 1.0

    robust = np.ones(loss.size)

    def cost(q: Array) -> float:
        exponent = np.exp(np.clip(q, -5.0, 1.5))
        _, r = linear(exponent, root * robust)
        penalty = float(np.sum(((q - np.log(EXPONENT_MEAN)) / EXPONENT_SPREAD) ** 2)) * noise**2
        return float(np.sum((root * robust * r) ** 2)) + penalty

    q = np.full(len(names), np.log(EXPONENT_MEAN)) if start is None else np.log(start.exponent)
    for _ in range(3 if start is None else 1):
        found = minimize(
            cost,
            q.astype(np.float64),
            method="Nelder-Mead",
            tol=1e-10,
            # a draw need not be sharper than a tenth of its own spread
            options={
                "xatol": 1e-3 if start is None else 1e-2,
                "fatol": 1e-12,
                "maxiter": 120 if start is None else 30,
            },
        )
        q = np.asarray(found.x, dtype=float)
        exponent = np.exp(np.clip(q, -5.0, 1.5))
        coef, r = linear(exponent, root * robust)
        robust = (1.0 + (r / (2.0 * noise + 1.5 * np.median(np.abs(r)))) ** 2) ** -0.25
    used = 1 + 2 * len(names)
    spread = 1.4826 * float(np.median(np.abs(r)))
    inflate = np.sqrt(loss.size / max(loss.size - used, 0.25 * loss.size))
    return Floor(names, centre, float(coef[0]), coef[1:], exponent, max(float(spread * inflate), 1e-6))
