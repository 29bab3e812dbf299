"""Falsifiable checks of the generalised (s, r) proxy, η* ~ √(aB)·D^(−(s+r)/(1+s+r)) and loss ~ D^(−s/(1+s+r)).

The proxy is a hypothesis: each check states a number it must give, and holds when that number lies in the measured
interval. Three need no knowledge of s and r; where they are known (planted spectra), the exponent itself is checked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metaopt_hpo.attribution.estimand import BATCH_EXPONENTS, Plane
from metaopt_hpo.scaling.estimates import Estimate
from metaopt_hpo.theory.intervals import interval
from metaopt_hpo.theory.predicted import predicted_exponents


@dataclass(frozen=True, slots=True)
class ProxyCheck:
    """One prediction against one measurement."""

    name: str
    predicted: float
    measured: Estimate

    @property
    def holds(self) -> bool:
        """Whether the prediction lies in the measured interval."""
        return self.predicted in self.measured


def proxy_checks(
    plane: Plane, *, source: float | None = None, capacity: float | None = None
) -> tuple[ProxyCheck, ...]:
    """Check the proxy on one level, fitted with a loss as criterion.

    Args:
        plane: exponents of the optimal lr and of the tuned loss, on common resamples.
        source, capacity: s and r where they are known; with r known, x + α_D must equal −r/(1+s+r), so 0 at r = 0.

    Raises:
        ValueError: capacity above 0 without source.
    """
    if capacity and source is None:
        raise ValueError("capacity above 0 needs source too: x + α_D is −r/(1+s+r)")
    widest = BATCH_EXPONENTS[-1]
    drift = plane.gap_samples(widest) - plane.gap_samples(0.0)
    checks = [
        ProxyCheck("y = 1/2", 0.5, plane.y),
        ProxyCheck(f"gap at b = {widest:g} minus gap at b = 0", 0.0, interval(float(drift[0]), drift[1:])),
    ]
    if capacity is not None:
        s = source or 0.0
        # α_D is minus the loss's slope, so x + α_D is their difference.
        difference = plane.samples[:, 0] - plane.loss_samples
        predicted = -capacity / (1 + s + capacity)
        checks.append(ProxyCheck("x + α_D", predicted, interval(float(difference[0]), difference[1:])))
    if source is not None and capacity is not None:
        exact = predicted_exponents("power-law", source=source, capacity=capacity)
        checks.append(ProxyCheck("x", exact.x, plane.x))
        checks.append(ProxyCheck("loss exponent in D", -source / (1 + source + capacity), plane.loss_slope))
    return tuple(c for c in checks if np.isfinite(c.predicted))
