"""The edge of stability: how likely a run diverges at a learning rate, and how far below it the lr is set.

    logit P(diverge) = w · (u − e),   e = e₀ + e_N t_N + e_D t_D + e_B v,   w > 0

u and v are ln lr and ln batch from the law's optimum, t the law's axes. It is monotone in lr. A run may also explode by
bad luck, anywhere: only what is above that share counts as an edge. The fit is the mode of a posterior with weak
priors, its error that of a normal approximation there: far from the runs the edge is known less, and the chance of
crossing it grows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from metaopt_hpo.scaling.estimates import Caution
from metaopt_hpo.scaling.forms.surface import Array

PRIOR = {"edge": (1.5, 1.5), "moves": (0.0, 0.2), "sharpness": (math.log(6.0), 0.7), "luck": (-4.5, 1.5)}
"""Mean and standard deviation of: the edge above the optimum (ln units of lr), what it moves by beside the optimum for
an e-fold of size, tokens or batch, the logarithm of w, the logit of the share that explodes by bad luck. Edges lie
a factor of 2 to 10 above the best lr and are a factor of 1.5 wide."""

LOST = 0.5
"""What a diverged run costs, as ln loss: it is worth nothing and is run again, so half the loss of a target run."""

LEAST_DIVERGED = 2
"""Diverged runs from which an edge is fitted."""

DECIDED = 4.0
"""Log-likelihood by which an edge must explain the diverged runs better than bad luck anywhere."""

SAID = 0.05
"""Chance of divergence at the predicted lr from which a prediction carries a caution."""

STEPS = np.linspace(0.0, -2.0, 81)
"""How far below the lr of least expected loss without an edge the lr may be set, ln units."""


@dataclass(frozen=True)
class Edge:
    """A fitted edge.

    Attributes:
        mean: (e₀, moves along the axes of scale, move with the batch, ln w, logit of luck).
        covariance: of the same.
        runs, diverged: how many runs it was fitted to, and how many of them diverged.
    """

    mean: Array
    covariance: Array
    runs: int
    diverged: int

    def place(self, v: float, t: Array) -> float:
        """u at which half of the runs diverge."""
        return float(np.concatenate([[1.0], t, [v]]) @ self.mean[: t.size + 2])

    def chance(self, u: Array | float, v: float, t: Array) -> Array:
        """P(a run diverges), without bad luck, over what is known of the edge.

        Args:
            u: ln lr from the law's optimum, any shape.
            v: ln batch from it.
            t: the law's axes of scale, as in its design.
        """
        at = np.concatenate([[1.0], t, [v]])
        u = np.asarray(u, dtype=float)
        k = at.size
        away = u - float(at @ self.mean[:k])
        w = math.exp(float(self.mean[k]))
        # the logit's variance by the delta method; the mean of a logistic of a normal, by MacKay (1992)
        slopes = np.concatenate([np.broadcast_to(-w * at, (*u.shape, k)), (w * away)[..., None]], axis=-1)
        variance = np.einsum("...i,ij,...j->...", slopes, self.covariance[: k + 1, : k + 1], slopes)
        return np.asarray(special.expit(w * away / np.sqrt(1.0 + math.pi * variance / 8.0)))

    def lower(self, shift: float, h11: float, v: float, t: Array) -> tuple[float, float]:
        """(shift of ln lr of least expected loss, divergence included; the chance of divergence there).

        Args:
            shift: of ln lr from the optimum, of least expected loss without an edge.
            h11: curvature of the loss in ln lr.
            v, t: as in `chance`.
        """
        chance = self.chance(shift + STEPS, v, t)
        best = int(np.argmin(0.5 * h11 * STEPS**2 + LOST * chance))
        return shift + float(STEPS[best]), float(chance[best])


def fit_edge(u: Array, v: Array, t: Array, diverged: NDArray[np.bool_]) -> Edge | None:
    """The edge that runs show; None where few diverged (`LEAST_DIVERGED`), or bad luck explains them as well.

    Args:
        u, v: ln lr and ln batch of each run from the law's optimum.
        t: (runs × axes of scale).
        diverged: whether it did.
    """
    if diverged.sum() < LEAST_DIVERGED:
        return None
    design = np.column_stack([np.ones(u.size), t, v])
    k = design.shape[1]
    means, spreads = (
        np.array([PRIOR["edge"][i], *[PRIOR["moves"][i]] * (k - 1), PRIOR["sharpness"][i], PRIOR["luck"][i]])
        for i in (0, 1)
    )
    sign = np.where(diverged, 1.0, -1.0)

    def parts(theta: Array) -> tuple[float, Array]:
        w, luck = math.exp(theta[k]), float(special.expit(theta[k + 1]))
        away = u - design @ theta[:k]
        p = special.expit(w * away)
        q = luck + (1.0 - luck) * p
        chance = np.clip(np.where(diverged, q, 1.0 - q), 1e-12, None)
        slope = sign / chance * (1.0 - luck) * p * (1.0 - p)
        by = np.column_stack(
            [-w * design * slope[:, None], w * away * slope, sign / chance * (1.0 - p) * luck * (1.0 - luck)]
        )
        off = (theta - means) / spreads
        return float(0.5 * off @ off - np.log(chance).sum()), off / spreads - by.sum(axis=0)

    start = means.copy()
    start[0] = float(np.median(u[diverged]))
    found = optimize.minimize(parts, start, jac=True, method="BFGS", options={"maxiter": 200})
    steps = np.maximum(1e-4, 1e-4 * np.abs(found.x))
    rows = [
        (parts(found.x + s * e)[1] - parts(found.x - s * e)[1]) / (2 * s)
        for s, e in zip(steps, np.eye(k + 2), strict=True)
    ]
    hessian = 0.5 * (np.array(rows) + np.array(rows).T)
    values, vectors = np.linalg.eigh(hessian)
    covariance = (vectors / np.maximum(values, 1.0 / (4.0 * spreads.max() ** 2))) @ vectors.T
    share = float(diverged.mean())
    by_luck = diverged.sum() * math.log(share) + (~diverged).sum() * math.log(max(1.0 - share, 1e-12))
    off = (found.x - means) / spreads
    if 0.5 * float(off @ off) - float(found.fun) - by_luck < DECIDED:
        return None
    return Edge(np.asarray(found.x), np.asarray(covariance), int(u.size), int(diverged.sum()))


def edge_cautions(chance: float) -> tuple[Caution, ...]:
    """A caution where even the predicted lr may diverge."""
    if chance <= SAID:
        return ()
    message = (
        f"a run at the predicted lr diverges with a chance of {chance:.0%}, by where runs of the table did: warm up "
        "longer, clip gradients, or run a pilot nearer to this size"
    )
    return (Caution("edge-of-stability", message),)
