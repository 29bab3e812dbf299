"""Percentile intervals of bootstrap samples: the one way in which theory and attribution state their uncertainty."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.scaling.estimates import Estimate

LEVEL = 0.95
"""Level of every interval here."""


def interval(value: float, samples: NDArray[np.float64], level: float = LEVEL) -> Estimate:
    """Percentile interval of bootstrap samples; failed resamples (NaN) are left out."""
    good = samples[np.isfinite(samples)]
    if good.size == 0:
        return Estimate(float(value), -np.inf, np.inf)
    low, high = np.quantile(good, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(value), float(low), float(high))
