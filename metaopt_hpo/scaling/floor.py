"""The loss floor over size and tokens: exp F = E + (A·N^-a + C·D^-b)^γ, with effective exponents γa and γb.

γ = 1 is Hoffmann et al. 2022 (eq. 2), where a step in tokens is worth the same at every size; E = 0 is Kaplan et
al. 2020 (eq. 1.5), where a model too small for its tokens gains little from more of them. The tables measured
here want γ near 0.4: their separable fits leave residuals of ±1.5 % that change sign from small to large sizes
(docs/studies/laws/README.md). Parabolas of argmins ("Approach 2") are biased even without noise and are not used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metaopt_hpo.scaling.floor_solver import FloorBatch, prior_of
from metaopt_hpo.scaling.surface import Array

PRIOR = {
    "level": (math.log(0.5), 1.0),
    "share": (math.log(0.25), 1.5),
    "exponent": (math.log(0.16), 0.65),
    "power": (-1.2, 1.2),
}
"""Mean and standard deviation of the logarithm of: E and each term over the mean loss, effective exponents, γ.

Exponents and γ lie halfway, in logarithms, between Kaplan et al. (0.076, 0.095; γ = 0.095) and Hoffmann et al.
(0.34, 0.28; γ = 1), either one standard deviation away. They decide what few cells leave open:
docs/studies/laws/README.md compares others."""

MODEL_ERROR = 3e-4
"""Least standard deviation (ln loss) of a cell about the floor that a fit believes."""

STEPS = 60
"""Levenberg–Marquardt steps at most."""


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


def fit_floor(
    names: tuple[str, ...],
    log_size: Array,
    log_tokens: Array,
    log_loss: Array,
    weight: Array,
    *,
    start: Floor | None = None,
    noise: float = 1e-3,
    prior: Mapping[str, tuple[float, float]] = PRIOR,
    steps: int = STEPS,
) -> Floor:
    """Fit the floor to cells.

    Args:
        names: terms to use, of "size" and "tokens".
        log_size, log_tokens, log_loss, weight: one value a cell.
        start: where to begin; its scatter then sets how much a cell counts.
        noise: ln-loss scale of a cell's own error.
        prior: as `PRIOR`.
        steps: iterations at most.
    """
    t, centre = _coordinates(names, log_size, log_tokens)
    mean = float(np.average(log_loss, weights=np.maximum(weight, 1e-12)))
    value, precision = prior_of(prior, len(names), names)

    def problem(count: int, sigma: float) -> FloorBatch:
        z, w, mu, q = (np.tile(v, (count, 1)) for v in (log_loss - mean, weight, value, precision))
        return FloorBatch(t, z, w, mu, q, max(sigma, MODEL_ERROR))

    if start is None:
        starts = _starts(value, len(names))
        batch = problem(len(starts), noise)
        found = batch.minimise(starts, steps)
        theta = found[[int(batch.cost(found).argmin())]]
        for _ in range(2):
            batch = problem(1, float(batch.take(np.array([0])).scatter(theta)[0]))
            theta = batch.minimise(theta, steps)
    else:
        batch = problem(1, start.scatter)
        theta = batch.minimise(_encode(start, centre, np.array([mean])), steps)
    level, coefficient, exponent, power = _decode(theta, np.array([mean]), len(names))
    scatter = max(float(batch.take(np.array([0])).scatter(theta)[0]), 1e-6)
    return Floor(names, centre, float(level[0]), coefficient[0], exponent[0], scatter, float(power[0]))


def refit_floors(
    floor: Floor,
    log_size: Array,
    log_tokens: Array,
    log_loss: Array,
    weight: Array,
    priors: Sequence[Mapping[str, tuple[float, float]]],
    *,
    steps: int,
) -> Array:
    """Floors of the same cells with other losses, weights and priors, all at once, each begun at `floor`.

    Args:
        floor: fitted to these cells; its scatter sets how much a cell counts.
        log_size, log_tokens: one value a cell.
        log_loss, weight: (fits × cells).
        priors: one a fit.
        steps: iterations at most.

    Returns:
        `Floor.parameters` of each, about the centre of the cells.
    """
    t, centre = _coordinates(floor.names, log_size, log_tokens)
    mean = np.average(log_loss, axis=1, weights=np.maximum(weight, 1e-12))
    value, precision = (
        np.array(v) for v in zip(*(prior_of(p, len(floor.names), floor.names) for p in priors), strict=True)
    )
    batch = FloorBatch(t, log_loss - mean[:, None], weight, value, precision, max(floor.scatter, MODEL_ERROR))
    theta = batch.minimise(_encode(floor, centre, mean), steps)
    level, coefficient, exponent, power = _decode(theta, mean, len(floor.names))
    return np.column_stack([level, coefficient, exponent, power])


def _coordinates(names: tuple[str, ...], log_size: Array, log_tokens: Array) -> tuple[Array, Array]:
    """(cells × names) logarithms about their mean over the cells, and that mean."""
    t = np.stack([log_size if n == "size" else log_tokens for n in names], axis=1)
    centre = t.mean(axis=0)
    return t - centre, centre


def _starts(value: Array, terms: int) -> Array:
    """Where a fit without a start begins: Hoffmann's form, and one of strong interaction."""
    if terms == 1:
        return value[None].copy()
    starts = np.tile(value, (2, 1))
    starts[:, -1] = 0.0, -1.0
    starts[:, 1 : 1 + terms] = math.log(0.25) / np.exp(starts[:, -1:])
    return starts


def _encode(floor: Floor, centre: Array, mean: Array) -> Array:
    """Parameters of `floor` in fits of these mean ln losses (fits × parameters)."""
    shifted = np.log(np.maximum(floor.coefficient, 1e-12)) - floor.exponent * (centre - floor.centre)
    exponent = np.log(np.maximum(floor.exponent * floor.power, 1e-6))
    power = [math.log(floor.power)] if len(floor.names) > 1 else []
    theta = np.tile([math.log(max(floor.level, 1e-12)), *shifted, *exponent, *power], (len(mean), 1))
    theta[:, 0] -= mean
    theta[:, 1 : 1 + len(shifted)] -= mean[:, None] / floor.power
    return theta


def _decode(theta: Array, mean: Array, terms: int) -> tuple[Array, Array, Array, Array]:
    """(E, coefficients, exponents, γ) of each fit."""
    power = np.exp(theta[:, -1]) if terms > 1 else np.ones(len(theta))
    level = np.exp(mean + theta[:, 0])
    coefficient = np.exp(theta[:, 1 : 1 + terms] + (mean / power)[:, None])
    exponent = np.exp(theta[:, 1 + terms : 1 + 2 * terms]) / power[:, None]
    return level, coefficient, exponent, power
