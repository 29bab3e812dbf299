"""What a learning-rate schedule does to a bound: factors on the peak lr and on the value, never on an exponent.

A schedule is a shape s(u) in [0, 1] over the fraction u of a run; lr_k = peak · s(k/K).
Sources: the factors follow from the LMO bound of `bounds` with step-weighted averaging (derived);
`last_iterate_value` is the convex bound of Schaipp et al., arXiv 2501.18965, Theorem 10 (proved there).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Schedule = Literal["constant", "linear", "cosine", "wsd"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
WSD_DECAY = 0.2
"""Fraction of a warmup-stable-decay run spent in its linear decay: the usual 20 %."""


def shape(schedule: Schedule, fraction: NDArray[np.float64]) -> NDArray[np.float64]:
    """s(u): the multiplier of the peak lr at each fraction u of a run, in [0, 1]."""
    check_schedule(schedule)
    u = np.asarray(fraction, dtype=float)
    if schedule == "constant":
        return np.ones_like(u)
    if schedule == "linear":
        return 1.0 - u
    if schedule == "cosine":
        return 0.5 * (1.0 + np.cos(np.pi * u))
    return np.clip((1.0 - u) / WSD_DECAY, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class ScheduleFactors:
    """Moments of a schedule's shape and what follows from them (derived; holds for every K ≫ 1).

    Examples:
        >>> from metaopt_hpo.theory import schedule_factors
        >>> schedule_factors("constant").mean
        1.0
    """

    mean: float
    """Mean of s over the run."""
    mean_square: float
    """Mean of s² over the run."""

    @property
    def peak(self) -> float:
        """Optimal peak lr over the optimal constant lr: 1/√(mean s²)."""
        return float(self.mean_square**-0.5)

    @property
    def value(self) -> float:
        """Factor on the Δ and L terms of the optimised bound: √(mean s²) / mean s (1 only when constant)."""
        return float(self.mean_square**0.5 / self.mean)


_MOMENTS: dict[Schedule, tuple[float, float]] = {
    "constant": (1.0, 1.0),
    "linear": (1 / 2, 1 / 3),
    "cosine": (1 / 2, 3 / 8),
    "wsd": (1 - WSD_DECAY / 2, 1 - 2 * WSD_DECAY / 3),
}


def schedule_factors(schedule: Schedule) -> ScheduleFactors:
    """Closed-form factors of a named schedule: constant, linear to 0, cosine to 0, or WSD with 20 % decay.

    Examples:
        >>> from metaopt_hpo.theory import schedule_factors
        >>> round(schedule_factors("cosine").mean, 2)
        0.5
    """
    check_schedule(schedule)
    return ScheduleFactors(*_MOMENTS[schedule])


def last_iterate_value(
    schedule: Schedule, steps: int, *, distance: float = 1.0, gradient: float = 1.0
) -> float:
    """Convex, non-smooth, last-iterate bound with the base lr tuned (proved: Schaipp et al., Theorem 10).

    It orders schedules differently from the averaged LMO bound: decay to zero wins, and a constant lr pays a
    factor that grows like √log K.

    Args:
        schedule: shape of the lr.
        steps: K, at least 2.
        distance: ‖w₀ − w*‖, in weight units.
        gradient: bound on the gradient norm.

    Returns:
        The bound on E f(w_K) − f*, in units of distance × gradient.

    Examples:
        >>> from metaopt_hpo.theory import last_iterate_value
        >>> last_iterate_value("linear", 1000) < last_iterate_value("constant", 1000)
        True
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2 for a last-iterate bound, got {steps!r}")
    # s(k/K) for k = 0..K-1 never reaches zero, so that every suffix sum below is positive.
    s = shape(schedule, np.arange(steps) / steps)
    tail, tail_sq = np.cumsum(s[::-1])[::-1], np.cumsum(s[::-1] ** 2)[::-1]
    growth = tail_sq[0] / tail[0] + np.sum(s[:-1] / tail[1:] * tail_sq[:-1] / tail[:-1])
    # bound(γ) = distance²/(2γ Σs) + γ gradient² growth/2, minimal where both halves agree.
    return float(distance * gradient * np.sqrt(growth / tail[0]))


def check_schedule(schedule: str) -> None:
    """Raise a ValueError naming the allowed schedules unless `schedule` is one of them."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
