"""Many loss floors fitted at once: Levenberg–Marquardt on a batch, one row a fit.

A fit has a few dozen cells and five parameters, so one by one they cost a thousand array calls each and the
bootstrap of a law some seconds; together they cost what one does. All fits of a batch share their cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.scaling import ending
from metaopt_hpo.scaling.forms.axes import Array
from metaopt_hpo.scaling.forms.floor import POWER, FloorForm

FIRST_DAMPING = 1e-2
"""Damping of the first step, relative to the normal matrix's diagonal."""

LEAST_DAMPING = 1e-9
"""Damping below which it falls no further: from there a step is Gauss and Newton's."""

TRIES = 6
"""Dampings tried in one step, each five times the last."""


@dataclass(frozen=True)
class FloorBatch:
    """Penalised robust least squares over (ln E, ln coefficients, ln effective exponents[, ln γ]), mean loss 1.

    Attributes:
        t: (cells × terms) ln size and ln tokens about their centre.
        z: (fits × cells) ln loss.
        weight: (fits × cells).
        value, precision: (fits × parameters) Gaussian prior.
        sigma: residual scale of the soft-L1 loss.
        form: how terms make a loss.
        features: (cells × shifts) further coordinates that move ln loss linearly.
    """

    t: Array
    z: Array
    weight: Array
    value: Array
    precision: Array
    sigma: float
    form: FloorForm = POWER
    features: Array = field(default_factory=lambda: np.zeros((0, 0)))

    def take(self, rows: NDArray[np.intp]) -> FloorBatch:
        """Some of the fits."""
        parts = (self.z[rows], self.weight[rows], self.value[rows], self.precision[rows])
        return FloorBatch(self.t, *parts, self.sigma, self.form, self.features)

    def log_loss(self, theta: Array) -> Array:
        """(fits × cells)."""
        q = self.features.shape[1]
        if not q:
            return self.form.log_loss(theta, self.t)
        return self.form.log_loss(theta[:, :-q], self.t) + theta[:, -q:] @ self.features.T

    def model(self, theta: Array) -> tuple[Array, Array]:
        """(ln loss, its Jacobian as fits × cells × parameters)."""
        q = self.features.shape[1]
        if not q:
            return self.form.model(theta, self.t)
        value, jac = self.form.model(theta[:, :-q], self.t)
        moved = np.broadcast_to(self.features, (len(theta), *self.features.shape))
        return value + theta[:, -q:] @ self.features.T, np.concatenate([jac, moved], axis=2)

    def cost(self, theta: Array) -> Array:
        """Soft-L1 of the residuals over `sigma`, plus the prior's penalty; one value a fit."""
        r = (self.z - self.log_loss(theta)) / self.sigma
        loss = (self.weight * (8.0 * (np.sqrt(1.0 + 0.25 * r * r) - 1.0))).sum(axis=1)
        return np.asarray(loss + (self.precision * (theta - self.value) ** 2).sum(axis=1))

    def minimise(self, theta: Array, steps: int) -> Array:
        """Levenberg–Marquardt from `theta` (fits × parameters); a fit that no longer moves is left alone."""
        theta = theta.astype(np.float64)
        cost, damping = self.cost(theta), np.full(len(theta), FIRST_DAMPING)
        active = np.arange(len(theta))
        for _ in range(steps):
            ending.go_on()
            batch = self.take(active)
            moved = batch._step(theta, cost, damping, active)
            active = active[moved >= 1e-6 * (1.0 + cost[active])]
            if not active.size:
                break
        return theta

    def _step(self, theta: Array, cost: Array, damping: Array, active: NDArray[np.intp]) -> Array:
        """One step of the fits `active`, whose batch this is: how far their cost fell.

        Writes into `theta`, `cost` and `damping`.
        """
        at = theta[active]
        f, jac = self.model(at)
        r = self.z - f
        w = self.weight / np.sqrt(1.0 + (r / (2.0 * self.sigma)) ** 2) / self.sigma**2
        weighted = (jac * w[:, :, None]).transpose(0, 2, 1)
        normal = weighted @ jac
        diagonal = np.einsum("bii->bi", normal)  # a view
        diagonal += self.precision
        gradient = (weighted @ r[:, :, None])[:, :, 0] - self.precision * (at - self.value)
        moved = np.zeros(len(active))
        waiting = np.arange(len(active))
        for _ in range(TRIES):
            rows = active[waiting]
            damped = normal[waiting]
            np.einsum("bii->bi", damped)[...] *= 1.0 + damping[rows, None]
            delta = np.linalg.solve(damped, gradient[waiting][:, :, None])[:, :, 0]
            trial = at[waiting] + np.clip(delta, -1.0, 1.0)
            found = self.take(waiting).cost(trial)
            better = found <= cost[rows]
            moved[waiting[better]] = cost[rows[better]] - found[better]
            theta[rows[better]], cost[rows[better]] = trial[better], found[better]
            waiting = waiting[~better]
            damping[active[waiting]] *= 5.0
            if not waiting.size:
                break
        damping[active] = np.maximum(damping[active] / 5.0, LEAST_DAMPING)
        return moved

    def scatter(self, theta: Array) -> Array:
        """Robust standard deviation of the cells about each floor, inflated for the parameters spent."""
        spread = 1.4826 * np.median(np.abs(self.z - self.log_loss(theta)), axis=1)
        n = self.z.shape[1]
        return np.asarray(spread * np.sqrt(n / max(n - theta.shape[1], 0.25 * n)))


def prior_of(
    prior: Mapping[str, tuple[float, float]],
    terms: int,
    names: Sequence[str] = (),
    *,
    form: FloorForm = POWER,
    features: Sequence[str] = (),
) -> tuple[Array, Array]:
    """(value, precision) over the parameters of a floor with one or two terms, from `floor.PRIOR`'s names.

    What is known of one term alone stands under "share:size" or "exponent:tokens" and comes before what holds for all;
    `names` says which terms there are. A shift's stands under "shift:" and its feature.
    """
    gamma = np.exp(prior["power"][0] if terms > 1 else 0.0)

    def each(what: str) -> list[tuple[float, float]]:
        return [prior.get(f"{what}:{n}", prior[what]) for n in (names or [""] * terms)]

    # a coefficient c is a term of c^γ in the loss
    shares = [(mean / gamma, sd / gamma) for mean, sd in each("share")]
    rows = [prior["level"], *shares, *each("exponent")]
    rows += [prior["power"]] if terms > 1 else []
    rows += [prior.get(f"further:{n}", (mean, sd)) for n, mean, sd in form.further]
    rows += [prior[f"shift:{f}"] for f in features]
    mean, sd = np.array(rows, dtype=float).T
    return mean, 1.0 / sd**2
