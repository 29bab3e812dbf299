"""The loss floor over size and tokens: exp F = E + (A·N^-a + C·D^-b)^γ, with effective exponents γa and γb.

γ = 1 is Hoffmann et al. 2022 (eq. 2), where a step in tokens is worth the same at every size; E = 0 is Kaplan et
al. 2020 (eq. 1.5), where a model too small for its tokens gains little from more of them. The tables measured
here want γ near ½: their separable fits leave residuals of ±1.5 % that change sign from small to large sizes
(docs/laws.md). Parabolas of argmins ("Approach 2") are biased even without noise and are not used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from metaopt_hpo.scaling.surface import Array

PRIOR = {
    "level": (math.log(0.5), 1.0),
    "share": (math.log(0.25), 1.5),
    "exponent": (math.log(0.25), 0.5),
    "power": (-0.7, 0.7),
}
"""Mean and standard deviation of the logarithm of: E and each term over the mean loss, effective exponents, γ.

Wide on purpose. Exponents: Kaplan et al. found 0.08 and 0.10, Hoffmann et al. and their replication 0.28 to 0.37. γ:
between Hoffmann's 1 and Kaplan's 0.1. They decide only what few cells leave open."""

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
        start: where to begin (a bootstrap's point estimate); its scatter then sets how much a cell counts.
        noise: ln-loss scale of a cell's own error.
        prior: as `PRIOR`.
        steps: iterations at most.
    """
    axes = {"size": log_size, "tokens": log_tokens}
    centre = np.array([float(np.mean(axes[n])) for n in names])
    t = np.stack([axes[n] - c for n, c in zip(names, centre, strict=True)], axis=1)
    mean = float(np.average(log_loss, weights=np.maximum(weight, 1e-12)))
    problem = _Problem(t, log_loss - mean, weight, prior)
    if start is None:
        sigma = max(noise, MODEL_ERROR)
        theta = min(
            (problem.solve(q, sigma, steps) for q in problem.starts()), key=lambda q: problem.cost(q, sigma)
        )
        for _ in range(2):
            sigma = max(problem.scatter(theta), MODEL_ERROR)
            theta = problem.solve(theta, sigma, steps)
    else:
        sigma = max(start.scatter, MODEL_ERROR)
        theta = problem.solve(problem.encode(start, centre, mean), sigma, steps)
    k = len(names)
    power = math.exp(theta[-1]) if k > 1 else 1.0
    return Floor(
        names,
        centre,
        math.exp(mean + theta[0]),
        np.exp(theta[1 : 1 + k] + mean / power),
        np.exp(theta[1 + k : 1 + 2 * k]) / power,
        max(problem.scatter(theta), 1e-6),
        power,
    )


class _Problem:
    """Penalised robust least squares over (ln E, ln coefficients, ln effective exponents[, ln γ]), mean loss 1."""

    def __init__(self, t: Array, z: Array, weight: Array, prior: Mapping[str, tuple[float, float]]) -> None:
        self.t, self.z, self.weight = t, z, weight
        k = self.k = t.shape[1]
        gamma = prior["power"][0] if k > 1 else 0.0
        # a coefficient c is a term of c^γ in the loss
        share = prior["share"][0] / math.exp(gamma), prior["share"][1] / math.exp(gamma)
        rows = [prior["level"], *([share] * k), *([prior["exponent"]] * k)] + (
            [prior["power"]] if k > 1 else []
        )
        self.value = np.array([r[0] for r in rows])
        self.precision = np.array([1.0 / r[1] ** 2 for r in rows])

    def starts(self) -> list[Array]:
        """Where a fit without a start begins: Hoffmann's form, and one of strong interaction."""
        if self.k == 1:
            return [self.value.copy()]
        first, second = self.value.copy(), self.value.copy()
        first[1 : 1 + self.k], first[-1] = math.log(0.25), 0.0
        second[-1] = -1.0
        second[1 : 1 + self.k] = math.log(0.25) / math.exp(-1.0)
        return [first, second]

    def encode(self, floor: Floor, centre: Array, mean: float) -> Array:
        """Parameters of `floor`."""
        shifted = np.log(np.maximum(floor.coefficient, 1e-12)) - floor.exponent * (centre - floor.centre)
        exponent = np.log(np.maximum(floor.exponent * floor.power, 1e-6))
        level = math.log(max(floor.level, 1e-12)) - mean
        power = [math.log(floor.power)] if self.k > 1 else []
        return np.array([level, *(shifted - mean / floor.power), *exponent, *power])

    def model(self, theta: Array) -> tuple[Array, Array]:
        """(ln loss, its Jacobian)."""
        k = self.k
        gamma = math.exp(theta[-1]) if k > 1 else 1.0
        exponent = np.exp(theta[1 + k : 1 + 2 * k]) / gamma
        with np.errstate(over="ignore"):
            terms = np.exp(np.clip(theta[1 : 1 + k] - exponent * self.t, -200.0, 200.0))
        inside = terms.sum(axis=1)
        power = inside**gamma
        level = math.exp(theta[0])
        total = level + power
        share = (gamma * power / (total * inside))[:, None] * terms
        columns = [np.full((len(self.z), 1), level) / total[:, None], share, -share * exponent * self.t]
        if k > 1:
            by_gamma = power / total * gamma * np.log(inside) + (share * exponent * self.t).sum(axis=1)
            columns.append(by_gamma[:, None])
        return np.log(total), np.hstack(columns)

    def _robust(self, r: Array, sigma: float) -> Array:
        return np.asarray(self.weight / np.sqrt(1.0 + (r / (2.0 * sigma)) ** 2))

    def cost(self, theta: Array, sigma: float) -> float:
        """Soft-L1 of the residuals over `sigma`, plus the prior's penalty."""
        r = (self.z - self.model(theta)[0]) / sigma
        loss = float(self.weight @ (8.0 * (np.sqrt(1.0 + 0.25 * r * r) - 1.0)))
        return loss + float(self.precision @ (theta - self.value) ** 2)

    def solve(self, theta: Array, sigma: float, steps: int) -> Array:
        """Levenberg–Marquardt from `theta`."""
        theta, damping = theta.astype(np.float64), 1e-2
        cost = self.cost(theta, sigma)
        for _ in range(steps):
            f, jac = self.model(theta)
            r = self.z - f
            w = self._robust(r, sigma) / sigma**2
            normal = jac.T @ (w[:, None] * jac) + np.diag(self.precision)
            gradient = jac.T @ (w * r) - self.precision * (theta - self.value)
            moved = 0.0
            for _ in range(6):
                delta = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), gradient)
                trial = theta + np.clip(delta, -1.0, 1.0)
                found = self.cost(trial, sigma)
                if found <= cost:
                    moved = cost - found
                    theta, cost = trial, found
                    break
                damping *= 5.0
            damping = max(damping / 5.0, 1e-9)
            if moved < 1e-6 * (1.0 + cost):
                break
        return theta

    def scatter(self, theta: Array) -> float:
        """Robust standard deviation of the cells about the floor, inflated for the parameters spent."""
        r = self.z - self.model(theta)[0]
        spread = 1.4826 * float(np.median(np.abs(r)))
        n = len(r)
        return spread * math.sqrt(n / max(n - theta.size, 0.25 * n))
