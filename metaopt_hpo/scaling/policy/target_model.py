"""Loss over (ln lr, ln batch) at the target: a Gaussian process on its own runs with the law as its mean.

    ln L = level + bowl(u) + s · ∂bowl/∂u + k · bowl(u) + g(u),   u from the law's optimum in (ln lr, ln batch)

The law's optimum may be off (s), its bowl sharper or flatter (k), and the loss may have another shape altogether: g is
a Matérn-5/2 process. How far each may go is averaged over by its evidence in the target's runs (O'Hagan 1978; Rasmussen
and Williams 2006, sections 2.7 and 5.2): runs that agree with the law are read through the law, and where they do not
the model is that of plain Bayesian optimisation.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from metaopt_hpo.scaling.forms.surface import Array, Surface

LEVEL = 1.0
"""Standard deviation (ln loss) of the level, which the target's runs decide alone."""

SHARPNESS = 0.5
"""Relative standard deviation of the bowl's height about the law's: tables measured so far span a factor of 3."""

AMPLITUDES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Standard deviations (ln loss) of what the law's form may miss, from below the noise of a run to the whole range of a
table."""

LENGTHS = (0.3, 0.8, 2.0)
"""Correlation lengths of it, ln units: from a grid's usual step to a decade."""

NOISES = (1.0, 3.0, 9.0)
"""Noise of a run over the law's own."""

SHIFTS = (1.0, 3.0)
"""Standard deviation of the optimum about the law's, over what the pilots leave open."""

BELIEF = 0.5
"""Each step further from the law (the next amplitude, noise or shift) is so much less likely beforehand."""

DOUBTED = 1.0
"""The same of an amplitude under a law whose shape is in doubt: none is less likely."""

MATTERS = 0.02
"""Settings of less than this part of the likeliest one's weight are left out of predictions."""

FARTHEST = 50.0
"""ln units from the law's optimum at which all distances are one, and the highest loss (ln) above its best."""


LOSS_NOISE = 0.0015
"""Least standard deviation of ln loss about a fitted quadratic: the model-error floor."""

CONSIDERED = 60
"""Runs that a model reads: half of them the best ones, the others even over the rest. More would cost time and hardly
move what it says."""


def _settings(belief: float) -> Array:
    """(settings × 5): amplitude, length, factor on noise, factor on shift, ln prior."""
    return np.array(
        [
            (amplitude, length, noise, shift, i * math.log(belief) + (j + k) * math.log(BELIEF))
            for (i, amplitude), length, (j, noise), (k, shift) in itertools.product(
                enumerate(AMPLITUDES), LENGTHS, enumerate(NOISES), enumerate(SHIFTS)
            )
        ]
    )


def considered(log_loss: Array) -> NDArray[np.intp]:
    """Indices of `CONSIDERED` runs at most."""
    if log_loss.size <= CONSIDERED:
        return np.arange(log_loss.size)
    half = CONSIDERED // 2
    even = np.linspace(half, log_loss.size - 1, CONSIDERED - half).round().astype(int)
    return np.sort(np.argsort(log_loss, kind="stable")[np.concatenate([np.arange(half), even])])


@dataclass(frozen=True)
class TargetModel:
    """Posterior of the loss at a target.

    Args:
        surface: the law's bowl.
        at: (runs × 2), in (ln lr, ln batch) from the law's optimum.
        log_loss: (runs), ln of their final losses.
        sd: standard deviation of the optimum about the law's, ln units.
        noise: standard deviation of ln loss of a run about the bowl.
        belief: how much less likely each larger amplitude is beforehand.
    """

    surface: Surface
    at: Array
    log_loss: Array
    sd: float
    noise: float
    belief: float = BELIEF

    def predict(self, points: Array) -> tuple[Array, Array, Array]:
        """(weights, means, standard deviations) of ln loss without noise: (settings), (settings × points) twice."""
        settings, weight, factor, solved, level = self._fit
        bowl, features = self._features(points)
        cross = self._kernel(settings, self.at, self._features(self.at)[1], points, features)
        mean = bowl + level + np.einsum("sij,si->sj", cross, solved)
        half = np.linalg.solve(factor, cross)
        own = self._linear(settings) @ features**2 + settings[:, 0, None] ** 2
        variance = own - (half**2).sum(axis=1)
        return weight, mean, np.sqrt(np.maximum(variance, 1e-12))

    def ends(self, point: tuple[float, float]) -> list[tuple[float, float, float, float, float]]:
        """By setting: weight, mean and variance of ln loss at a point, noise of a run, lowest mean of the runs."""
        weight, means, sds = self.predict(np.array([point]))
        noise = self._fit[0][:, 2] * self.noise
        columns = (weight, means[:, 0], sds[:, 0] ** 2, noise, self._lowest)
        return list(zip(*(c.tolist() for c in columns), strict=True))

    def expected(self, points: Array) -> Array:
        """Of ln loss."""
        weight, mean, _ = self.predict(points)
        return np.asarray(weight @ mean)

    def chance_of_gain(self, points: Array, gain: float) -> Array:
        """Chance of a loss below a goal: lower by `gain` (ln loss) than the lowest expected one of the runs so far.

        The probability of improvement (Kushner 1964), with what counts as good for its margin: expected improvement
        goes for far points that may gain much, and pays for it where the law is nearly right. Where the model expects
        more of one of the points than that, this is the goal (Jones 2001), else the way there is taken in small steps.
        """
        weight, mean, sd = self.predict(points)
        goal = np.minimum(self._lowest - gain, mean.min(axis=1))
        return np.asarray(weight @ ndtr((goal[:, None] - mean) / sd))

    @cached_property
    def _lowest(self) -> Array:
        """Lowest mean of the runs, for each setting."""
        return np.asarray(self.predict(self.at)[1].min(axis=1))

    def _features(self, at: Array) -> tuple[Array, Array]:
        """(bowl at points, (4 × points) what level, shift in u, shift in v and sharpness are multiplied by)."""
        u, v = np.clip(at, -FARTHEST, FARTHEST).T
        h11, h12 = float(self.surface.h[0]), float(self.surface.h[1])
        if self.surface.open:  # along a valley without an end nothing is gained
            u, v = u + h12 / h11 * v, np.zeros_like(v)
        bowl = np.clip(self.surface.excess(u, v), 0.0, FARTHEST)
        across, along = (np.clip(s, -FARTHEST, FARTHEST) for s in self.surface.slopes(u, v))
        if self.surface.open:
            along = across * np.clip(h12 / h11, -1.0, 1.0)
        return bowl, np.stack([np.ones_like(bowl), across, along, bowl])

    def _linear(self, settings: Array) -> Array:
        """(settings × 4) prior variances of the features' coefficients."""
        shift = (settings[:, 3] * self.sd) ** 2
        return np.stack(
            [np.full_like(shift, LEVEL**2), shift, shift, np.full_like(shift, SHARPNESS**2)], axis=1
        )

    def _kernel(self, settings: Array, a: Array, of_a: Array, b: Array, of_b: Array) -> Array:
        """(settings × a × b)."""
        linear = np.einsum("sf,fi,fj->sij", self._linear(settings), of_a, of_b)
        away = np.sqrt(((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2))
        r = math.sqrt(5.0) * away / settings[:, 1, None, None]
        return np.asarray(linear + settings[:, 0, None, None] ** 2 * (1.0 + r + r * r / 3.0) * np.exp(-r))

    @cached_property
    def _fit(self) -> tuple[Array, Array, Array, Array, float]:
        """(settings that matter, weights, Cholesky factors, K⁻¹(y − mean), level of the mean)."""
        settings = _settings(self.belief)
        bowl, features = self._features(self.at)
        gap = self.log_loss - bowl
        level = float(gap.mean()) if gap.size else 0.0
        kernel = self._kernel(settings, self.at, features, self.at, features)
        kernel += (settings[:, 2, None, None] * self.noise) ** 2 * np.eye(gap.size)
        factor = np.linalg.cholesky(kernel)
        half = np.linalg.solve(
            factor, np.broadcast_to((gap - level)[None, :, None], (len(settings), gap.size, 1))
        )
        evidence = settings[:, 4] - 0.5 * (half**2).sum(axis=(1, 2))
        evidence -= np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(axis=1)
        weight = np.exp(evidence - evidence.max())
        kept = weight > MATTERS
        solved = np.linalg.solve(np.swapaxes(factor[kept], 1, 2), half[kept])[..., 0]
        return settings[kept], weight[kept] / weight[kept].sum(), factor[kept], solved, level
