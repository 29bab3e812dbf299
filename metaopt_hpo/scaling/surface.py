"""The loss surface over size, tokens, batch and lr: a bowl in (ln lr, ln batch) whose bottom moves as a power law.

    ln L = F(N, D) + ½ h₁₁ p² + h₁₂ p q + ½ h₂₂ q²,   p = s(ln lr − ln lr*, γ₁),  q = s(ln B − ln B*, γ₂)
    ln lr* = a₀ + a·t,  ln B* = b₀ + b·t,  t = (ln N/N₀, ln D/D₀, …),   s(u, γ) = (e^{γu} − 1)/γ

s(·, γ) makes the bowl skewed (too large an lr hurts more than too small a one) while it keeps one minimum,
which a cubic term does not. The floor is exp F = E + A·N^-α + C·D^-β (Hoffmann et al. 2022, eq. 2).
Working in ln L makes every part but the floor's scale independent of the loss's unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MAX_SKEW = 1.5
"""Bound on |γ|: beyond it the far side of the bowl is a wall that no table resolves."""


@dataclass(frozen=True)
class Axes:
    """Which logarithms the optimum depends on, and where they are centred.

    Attributes:
        names: subset of ("size", "tokens") in this order; one alone where the table varies only one of them or
            both in proportion.
        centre: mean of each over the cells, so that intercepts and slopes are nearly independent.
    """

    names: tuple[str, ...]
    centre: Array

    def design(self, size: Array | float, tokens: Array | float) -> Array:
        """Rows (1, t₁, …) for each size and tokens."""
        size, tokens = np.broadcast_arrays(np.asarray(size, dtype=float), np.asarray(tokens, dtype=float))
        value = {"size": np.log(size), "tokens": np.log(tokens)}
        columns = [np.ones(size.shape)] + [value[n] - c for n, c in zip(self.names, self.centre, strict=True)]
        return np.stack(columns, axis=-1)


def skewed(u: Array, gamma: float) -> Array:
    """s(u, γ) = (e^{γu} − 1)/γ, and u where γ = 0; exponents are clipped at ±30."""
    if abs(gamma) < 1e-8:
        return u
    return np.expm1(np.clip(gamma * u, -30.0, 30.0)) / gamma


@dataclass(frozen=True)
class Surface:
    """Parameters of the bowl. `b` is empty where the table holds one batch per cell (no batch law).

    Attributes:
        a: (1 + axes) intercept and slopes of ln lr*.
        b: the same of ln B*, or of the batch the table used where it was not varied.
        h: (h₁₁, h₁₂, h₂₂).
        gamma: (γ₁, γ₂).
        has_batch: whether a batch optimum is identified.
    """

    a: Array
    b: Array
    h: Array
    gamma: Array
    has_batch: bool

    def centre(self, design: Array) -> tuple[Array, Array]:
        """(ln lr*, ln B*) for rows of `Axes.design`."""
        return design @ self.a, design @ self.b

    def excess(self, u: Array, v: Array) -> Array:
        """ln L above the floor at distances u, v from the optimum in ln lr and ln B."""
        p = skewed(u, float(self.gamma[0]))
        q = skewed(v, float(self.gamma[1]))
        out: Array = 0.5 * self.h[0] * p * p + self.h[1] * p * q + 0.5 * self.h[2] * q * q
        return out

    def lr_given_batch(self, v: Array | float) -> Array:
        """Shift of ln lr* when the batch is off its optimum by v in ln B (the valley's direction)."""
        if self.h[0] <= 0:
            return np.zeros_like(np.asarray(v, dtype=float))
        q = skewed(np.asarray(v, dtype=float), float(self.gamma[1]))
        p = -self.h[1] / self.h[0] * q
        g = float(self.gamma[0])
        if abs(g) < 1e-8:
            return np.asarray(p)
        return np.asarray(np.log(np.maximum(1.0 + g * p, 0.05)) / g)
