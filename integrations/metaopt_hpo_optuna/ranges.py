"""Ranges of a study's parameters, and the value in one that is nearest to a law's number."""

from __future__ import annotations

import math
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import Study

from metaopt_hpo_optuna import _compat


def log_range(distribution: BaseDistribution) -> tuple[float, float] | None:
    """(low, high) of a positive numeric distribution; None where a law's number cannot be placed in it."""
    if isinstance(distribution, CategoricalDistribution):
        if all(
            isinstance(c, int | float) and not isinstance(c, bool) and c > 0 for c in distribution.choices
        ):
            values = [float(c) for c in distribution.choices if isinstance(c, int | float)]
            return min(values), max(values)
        return None
    if isinstance(distribution, FloatDistribution | IntDistribution) and distribution.low > 0:
        return float(distribution.low), float(distribution.high)
    return None


def range_so_far(study: Study, name: str) -> tuple[float, float] | None:
    """The range a parameter had in the newest trial that has it."""
    for trial in reversed(_compat.trials_at_ask(study)):
        if name in trial.distributions:
            return log_range(trial.distributions[name])
    return None


def nearest(distribution: BaseDistribution, value: float) -> Any:
    """The value of the distribution that is nearest to `value`, in the logarithm for choices."""
    if isinstance(distribution, CategoricalDistribution):
        return min(distribution.choices, key=lambda c: abs(math.log(float(c) / value)))  # type: ignore[arg-type]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    value = min(max(value, low), high)
    if distribution.step is not None and not distribution.log:
        value = min(low + round((value - low) / distribution.step) * distribution.step, high)
    return round(value) if isinstance(distribution, IntDistribution) else float(value)
