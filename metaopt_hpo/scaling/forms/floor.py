"""The loss floor over size and tokens: exp F = E + (A·N^-a + C·D^-b)^γ, with effective exponents γa and γb.

γ = 1 is Hoffmann et al. 2022 (eq. 2), where a step in tokens is worth the same at every size; E = 0 is Kaplan et
al. 2020 (eq. 1.5), where a model too small for its tokens gains little from more of them. The tables measured
here want γ near 0.4: their separable fits leave residuals of ±1.5 % that change sign from small to large sizes
(docs/studies/laws/README.md). Parabolas of argmins ("Approach 2") are biased even without noise and are not used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from metaopt_hpo.scaling.forms.surface import Array

PRIOR = {
    "level": (math.log(0.5), 1.0),
    "share": (math.log(0.25), 1.5),
    "exponent": (math.log(0.16), 0.3),
    "power": (-1.2, 1.2),
}
"""Mean and standard deviation of the logarithm of: E and each term over the mean loss, effective exponents, γ.

Exponents and γ lie halfway, in logarithms, between Kaplan et al. (0.076, 0.095; γ = 0.095) and Hoffmann et al.
(0.34, 0.28; γ = 1). For γ either is one standard deviation away. Exponents of tables scatter by 0.3, as those of a base
do (`FLOOR_SPREAD`): three sizes show a bend where one of them is a little off, a wide prior takes that for a floor that
flattens, and the loss beyond is predicted too high. They decide what few cells leave open: docs/studies/laws/README.md
compares others."""


@dataclass(frozen=True)
class Floor:
    """The fitted floor; terms are relative to `centre` (ln).

    Attributes:
        names: which of size and tokens the terms are in.
        centre: ln of the value at which a term equals its coefficient.
        level: E.
        coefficient, exponent: one of each per name, inside the power.
        scatter: robust standard deviation of the cells about the fit, ln loss.
        power: γ; 1 where there is one term only.
    """

    names: tuple[str, ...]
    centre: Array
    level: float
    coefficient: Array
    exponent: Array
    scatter: float
    power: float = 1.0

    def log_loss(self, size: Array | float, tokens: Array | float) -> Array:
        """F(N, D), ln loss at the optimum."""
        size, tokens = np.broadcast_arrays(np.asarray(size, dtype=float), np.asarray(tokens, dtype=float))
        inside = np.zeros(size.shape)
        for name, c, k, e in zip(self.names, self.centre, self.coefficient, self.exponent, strict=True):
            inside = inside + k * np.exp(-e * (np.log(size if name == "size" else tokens) - c))
        return np.asarray(np.log(self.level + inside**self.power))

    def parameters(self) -> Array:
        """(E, coefficients, exponents, γ): one row of the draws."""
        return np.concatenate([[self.level], self.coefficient, self.exponent, [self.power]])

    def formula(self) -> str:
        """The floor in letters and numbers."""
        terms = [
            f"{c:.4g}·({n}/{math.exp(m):.3g})^-{e:.3f}"
            for n, m, c, e in zip(self.names, self.centre, self.coefficient, self.exponent, strict=True)
        ]
        inside = " + ".join(terms)
        return f"{self.level:.4g} + " + (f"({inside})^{self.power:.3f}" if self.power != 1.0 else inside)


def log_loss_of_draws(draws: Array, floor: Floor, size: float, tokens: float) -> Array:
    """F(N, D) for rows of `Floor.parameters` about the centre of `floor`."""
    k = len(floor.names)
    inside = np.zeros(len(draws))
    for i, name in enumerate(floor.names):
        t = math.log(size if name == "size" else tokens) - float(floor.centre[i])
        inside += draws[:, 1 + i] * np.exp(-draws[:, 1 + k + i] * t)
    return np.asarray(np.log(np.maximum(draws[:, 0] + inside ** draws[:, 1 + 2 * k], 1e-300)))


def recentre(draws: Array, old: Floor, new: Floor) -> Array:
    """Draws about the centre of `old`, moved so that their middle is `new` and their centre its centre."""
    k = len(old.names)
    out = draws.copy()
    move = new.centre - old.centre
    out[:, 1 : 1 + k] *= np.exp(-draws[:, 1 + k : 1 + 2 * k] * move)
    was = old.parameters()
    was[1 : 1 + k] *= np.exp(-old.exponent * move)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.where(was > 0, new.parameters() / np.maximum(was, 1e-300), 1.0)
    return np.asarray(out * factor)
