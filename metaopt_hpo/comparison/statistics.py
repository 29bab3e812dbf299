"""Paired comparisons, intervals and profiles, honest about how few seeds there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with its interval; `p` is two-sided and NaN below two pairs."""

    mean: float
    low: float
    high: float
    p: float
    pairs: int

    @property
    def decided(self) -> bool:
        """True where the interval excludes zero."""
        return math.isfinite(self.low) and (self.low > 0 or self.high < 0)


def paired_difference(a: Sequence[float], b: Sequence[float], *, level: float = 0.9) -> Difference:
    """Mean of a − b over pairs (seeds), with Student's t interval.

    With two to five seeds a bootstrap has almost nothing to resample and its intervals are too short; the
    t interval pays for small samples. One pair has no interval (infinite).

    Args:
        a, b: values of the two methods on the same seeds, in the same order.
        level: coverage of the interval (default 90 %, as everywhere in the reports).

    Raises:
        ValueError: lengths differ or are zero, or level is outside (0, 1).
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"paired samples must be of equal, positive length, got {len(a)} and {len(b)}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level!r}")
    d = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    mean = float(d.mean())
    n = len(d)
    if n == 1:
        return Difference(mean, -math.inf, math.inf, math.nan, 1)
    error = float(d.std(ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * error
    p = (
        1.0
        if error == 0 and mean == 0
        else 0.0
        if error == 0
        else 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    )
    return Difference(mean, mean - half, mean + half, p, n)


def mean_of_means(samples: Sequence[Sequence[float]], *, level: float = 0.9) -> Difference:
    """Mean over groups (cases) of the mean of paired differences within each (seeds): of these groups, not of others.

    Groups are independent and may differ in size and noise; the interval is Student's with Welch's degrees of
    freedom. A group of one has no variance, and then the mean has no interval.

    Args:
        samples: differences, group by group.
        level: coverage of the interval.

    Raises:
        ValueError: no group, or an empty one.
    """
    if not samples or not all(len(x) for x in samples):
        raise ValueError("mean_of_means needs at least one group, and a value in each")
    groups = [np.asarray(x, dtype=float) for x in samples]
    mean = float(np.mean([x.mean() for x in groups]))
    pairs = sum(len(x) for x in groups)
    if any(len(x) == 1 for x in groups):
        return Difference(mean, -math.inf, math.inf, math.nan, pairs)
    parts = np.array([x.var(ddof=1) / len(x) for x in groups]) / len(groups) ** 2
    error = math.sqrt(parts.sum())
    if error == 0:
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0, pairs)
    freedom = parts.sum() ** 2 / sum(v * v / (len(x) - 1) for v, x in zip(parts, groups, strict=True))
    half = float(stats.t.ppf(0.5 + level / 2, freedom)) * error
    return Difference(
        mean, mean - half, mean + half, 2 * float(stats.t.sf(abs(mean) / error, freedom)), pairs
    )


def bootstrap_mean(
    values: Sequence[float], *, level: float = 0.9, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; for ten values or more (fewer: use `paired_difference`)."""
    x = np.asarray(values, dtype=float)
    if not len(x):
        raise ValueError("bootstrap_mean needs at least one value")
    draws = np.random.default_rng(seed).integers(0, len(x), (resamples, len(x)))
    means = x[draws].mean(axis=1)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def bootstrap_median(
    values: Sequence[float], *, level: float = 0.9, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the median."""
    x = np.asarray(values, dtype=float)
    if not x.size:
        raise ValueError("bootstrap_median needs at least one value")
    medians = np.median(x[_draws(x.size, resamples, seed)], axis=1)
    low, high = np.quantile(medians, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def ratio_of_medians(
    base: Sequence[float], other: Sequence[float], *, level: float = 0.9, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Median of `base` over median of `other` (more than 1: `other` is cheaper) and a bootstrap interval.

    Args:
        base, other: values of the two methods on the same seeds, in the same order; seeds are resampled, both
            values of one together.

    Raises:
        ValueError: lengths differ or are zero.
    """
    a, b = np.asarray(base, dtype=float), np.asarray(other, dtype=float)
    if a.size != b.size or not a.size:
        raise ValueError(f"paired samples must be of equal, positive length, got {a.size} and {b.size}")
    draws = _draws(a.size, resamples, seed)
    ratios = np.median(a[draws], axis=1) / np.median(b[draws], axis=1)
    low, high = np.quantile(ratios, [0.5 - level / 2, 0.5 + level / 2])
    return float(np.median(a) / np.median(b)), float(low), float(high)


def _draws(count: int, resamples: int, seed: int) -> NDArray[np.intp]:
    return np.random.default_rng(seed).integers(0, count, (resamples, count))
