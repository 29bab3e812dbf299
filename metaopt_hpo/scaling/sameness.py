"""What counts as the same size or the same number of tokens: the one home of the tolerance, below fits and decisions.

Runs rarely end at exactly the tokens planned (the last optimizer step falls short or overshoots), sizes are counted
with or without a few parameters, and 1 % more of either is worth less than one run's noise. So two values are the
same within 1 %, and two numbers of tokens also where they differ by less than one optimizer step.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]

SAME = 1e-2
"""Sizes, or numbers of tokens, that differ by no more than this, relatively, are the same."""


def same(a: float, b: float, *, step: float = 0.0) -> bool:
    """Whether two sizes, or two numbers of tokens, count as one.

    Args:
        a, b: the values; ones that are not positive and finite are like nothing.
        step: tokens of an optimizer step, for numbers of tokens: a difference below it is rounding.
    """
    if not (0 < a < math.inf and 0 < b < math.inf):
        return False
    low, high = min(a, b), max(a, b)
    return high <= low * (1.0 + SAME) or high - low < step


def all_same(values: Array, value: float) -> NDArray[np.bool_]:
    """`same` of many values with one."""
    low, high = np.minimum(values, value), np.maximum(values, value)
    return np.asarray((low > 0) & (high <= low * (1.0 + SAME)))


def at_least(a: float, b: float) -> bool:
    """Whether a is above b, or the same."""
    return a * (1.0 + SAME) >= b


def group(values: Array) -> Array:
    """`values`, ascending groups of which span no more than `SAME`, each as its group's median.

    Any order of the values gives the same groups.
    """
    distinct, which = np.unique(values, return_inverse=True)
    number_of = np.empty(distinct.size, dtype=np.intp)
    start = number = 0
    while start < distinct.size:
        end = int(np.searchsorted(distinct, distinct[start] * (1.0 + SAME), side="right"))
        end = max(end, start + 1)  # whatever the numbers are, each is at least its own group
        number_of[start:end] = number
        start, number = end, number + 1
    return (
        pd.Series(values)
        .groupby(number_of[which.reshape(-1)])
        .transform("median")
        .to_numpy(dtype=float, copy=True)
    )
