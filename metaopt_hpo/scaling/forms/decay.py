"""Weight decay: the timescale τ = B / (lr · λ · D), its published law, and an optimum of λ that was fitted.

τ is how long, in runs, AdamW's average over updates reaches back (Wang & Aitchison 2024, arXiv 2405.13698). Its best
value is a power law of tokens per parameter, τ* = 1.084 (D/N)^-0.527 (Power Lines, Bergsma et al. 2025, arXiv
2505.13738), so that λ* = B / (lr τ* D). There lr is the peak of a linear decay to zero. What shrinks weights is the sum
of lr·λ over the run, so for another schedule λ is set such that the sum is the same; MetaOptimize too multiplies the
decay by the step size that it found. That sums may stand for one another is an assumption, and widens the interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from metaopt_hpo.scaling.forms.axes import Array

NAME = "weight_decay"
"""Of the coordinate."""

TIMESCALE = (1.084, -0.527)
"""τ* = c · (tokens / parameters)^k (Bergsma et al. 2025); their runs have 111 M to 3.3 B parameters."""

TIMESCALE_SPREAD = 0.3
"""Standard deviation, ln units, of the best timescale about that (their figure 2, by eye)."""

SIZES = (1.11e8, 3.3e9)
"""Parameters of their models."""

OUTSIDE_SPREAD = 0.2
"""What the spread grows by with each e-fold of size outside these: at 25 thousand parameters the published weight decay
was 4 to 5 times the best one (`python -m studies.laws.decay`)."""

SOURCE = "Power Lines (arXiv 2505.13738)"

MEAN = {"linear": 0.5, "cosine": 0.5, "wsd": 0.9, "constant": 1.0, "metaoptimize": 0.9}
"""Mean of a schedule over its peak; WSD and MetaOptimize decay over the last fifth of the run."""

SUM_SPREAD = 0.3
"""Standard deviation, ln units, of λ where another schedule's sum stands for the linear one's, or none is known."""

OPTIMUM_SCATTER = 0.15
"""Standard deviation, ln units, of a cell's best weight decay about a fitted law, as of its best lr."""

BEYOND = 1.0
"""ln units by which a fitted optimum may lie outside the weight decays that were run."""


def best_timescale(size: float, tokens: float) -> float:
    """τ* in runs, by the published law."""
    return float(TIMESCALE[0] * (tokens / size) ** TIMESCALE[1])


def timescale_spread(size: float) -> float:
    """Standard deviation, ln units, of the best timescale about the published law's."""
    outside = max(math.log(SIZES[0] / size), math.log(size / SIZES[1]), 0.0)
    return math.hypot(TIMESCALE_SPREAD, OUTSIDE_SPREAD * outside)


def published_decay(
    size: float, tokens: float, lr: float, batch: float, schedule: str = "linear"
) -> tuple[float, float]:
    """(λ*, standard deviation of ln λ* beside that of lr and batch) by the published law.

    Args:
        size, tokens: parameters; training tokens.
        lr: peak of the schedule, or the step size that MetaOptimize settles on.
        batch: tokens per step.
        schedule: what lr is the peak of; one that is not in `MEAN` counts as linear.

    Examples:
        >>> from metaopt_hpo.scaling.forms.decay import published_decay
        >>> value, sd = published_decay(1e9, 2e10, lr=1e-3, batch=2**20)
        >>> f"{value:.2g}"
        '0.23'
    """
    known = MEAN.get(schedule)
    value = batch / (lr * best_timescale(size, tokens) * tokens) * MEAN["linear"] / (known or MEAN["linear"])
    sum_spread = 0.0 if known == MEAN["linear"] else SUM_SPREAD
    return value, math.hypot(timescale_spread(size), sum_spread)


@dataclass(frozen=True)
class Decay:
    """A quadratic in ln λ whose optimum moves with size and tokens, fitted to the best losses at each λ.

    Attributes:
        c: (1 + axes of scale) intercept and slopes of ln λ*.
        h: curvature of ln loss in ln λ.
        draws: (draws × the same) of `c`.
        span: lowest and highest λ that was run.
        runs: how many values of λ at some size and tokens it was fitted to.
    """

    c: Array
    h: float
    draws: Array
    span: tuple[float, float]
    runs: int

    def best(self, row: Array) -> float:
        """ln λ* for a row of the law's design, its further coordinates left out; within reach of what was run."""
        low, high = (math.log(v) for v in self.span)
        return min(max(float(row[: self.c.size] @ self.c), low - BEYOND), high + BEYOND)

    def outside(self, row: Array) -> bool:
        """Whether the optimum lies outside the λ that were run."""
        at = float(row[: self.c.size] @ self.c)
        return not math.log(self.span[0]) - 1e-9 <= at <= math.log(self.span[1]) + 1e-9

    def deviations(self, row: Array) -> Array:
        """Draws of ln λ* about it."""
        return np.asarray((self.draws - self.c) @ row[: self.c.size])

    def excess(self, rows: Array, log_decay: Array | float) -> Array:
        """ln loss above the best λ's; Huber's form: far from the optimum it grows no faster than it was seen to."""
        away = np.abs(np.asarray(log_decay) - rows[..., : self.c.size] @ self.c)
        most = math.log(self.span[1] / self.span[0])
        inside = np.minimum(away, most)
        return np.asarray(0.5 * self.h * inside**2 + self.h * inside * (away - inside))
