"""A Gaussian process on the target's own runs with the law's bowl as its mean: what a search falls back on.

After a few runs of the target the bowl may be seen to be wrong there. The process then says where the optimum may be:
its mean is the law's bowl where that explains the runs, nothing where it does not (by marginal likelihood), and the
next run maximises the expected improvement (Jones et al. 1998).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import ndtr

from metaopt_hpo.scaling.surface import Array

LENGTHS = (0.5, 1.0, 2.0)
"""Length scales that are weighed, ln units of lr and batch."""

AMPLITUDES = (0.3, 1.0, 3.0)
"""Standard deviations of the process that are weighed, in those of the runs' own losses about its mean."""

NOISES = (0.1, 0.3)
"""Standard deviations of a run that are weighed, in the same unit."""

LEAST = 1e-4
"""Least of that unit, ln loss: equal losses are no certainty."""


def improve(points: Array, loss: Array, mean: Callable[[Array], Array], where: Array) -> Array:
    """Expected improvement of ln loss at each of `where`.

    Args:
        points: (runs × 2) ln lr and ln batch of the finished runs.
        loss: their ln loss.
        mean: the law's ln loss above its best at points.
        where: (candidates × 2).
    """
    best, found = -math.inf, None
    for share in (0.0, 1.0):
        rest = loss - share * mean(points)
        unit = max(float(rest.std()), LEAST)
        for length, amplitude, noise in itertools.product(LENGTHS, AMPLITUDES, NOISES):
            fit = _fit(points, rest, length, amplitude * unit, noise * unit)
            if fit[0] > best:
                best, found = fit[0], (share, length, amplitude * unit, *fit[1:])
    assert found is not None
    share, length, amplitude, level, factor, weights = found
    across = amplitude**2 * _kernel(where, points, length)
    foretold = level + share * mean(where) + across @ weights
    variance = amplitude**2 - np.einsum("ij,ji->i", across, cho_solve(factor, across.T))
    sd = np.sqrt(np.maximum(variance, 1e-16))
    at_runs = level + share * mean(points) + amplitude**2 * _kernel(points, points, length) @ weights
    gain = float(at_runs.min()) - foretold  # over the best as the process sees it: one run's luck is no mark
    z = gain / sd
    return np.asarray(gain * ndtr(z) + sd * np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi))


def _fit(
    points: Array, rest: Array, length: float, amplitude: float, noise: float
) -> tuple[float, float, tuple[Array, bool], Array]:
    """(log marginal likelihood, level, Cholesky factor, weights) with a level of its own."""
    covariance = amplitude**2 * _kernel(points, points, length) + noise**2 * np.eye(len(rest))
    factor = cho_factor(covariance, lower=True)
    ones = np.ones(len(rest))
    solved = cho_solve(factor, ones)
    level = float(solved @ rest / (solved @ ones))
    weights = cho_solve(factor, rest - level)
    likelihood = -0.5 * float((rest - level) @ weights) - float(np.log(np.diag(factor[0])).sum())
    return likelihood, level, factor, weights


def _kernel(a: Array, b: Array, length: float) -> Array:
    """Matérn 5/2."""
    r = np.sqrt(5.0 * ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)) / length
    return np.asarray((1.0 + r + r * r / 3.0) * np.exp(-r))
