"""Fits the multi-power law of `scaling.schedule_law` to loss curves: priors, robust residuals, several starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from metaopt_hpo.scaling.estimates import LawRefused
from metaopt_hpo.scaling.forms.surface import Array
from metaopt_hpo.scaling.schedule_law import NAMES, ScheduledCurve, ScheduleLaw, ScheduleSums, evenly

ROBUST = 2e-3
"""Residual of ln loss from which a reported loss counts less (soft L1): the noise of one report."""

INDEPENDENT = 10
"""Reports that a curve counts as, however many it holds: the law's own error is shared by neighbouring ones."""

LEAST_POINTS = 20
"""Reports that all curves must hold together."""

STARTS = (0.5, 0.3, 0.8)
"""β from which a fit begins; the best end is kept."""

SPREAD = {"alpha": 0.5, "drop": 0.3, "rate": 0.7, "beta": 0.5, "gamma": 0.5}
"""Standard deviation of the logarithm of what is believed of a `prior` law's parameters; floor and scale are free."""

USUAL = {
    "alpha": (math.log(0.5), 0.5),
    "drop": (math.log(0.06), 0.5),
    "rate": (math.log(300.0), 1.2),
    "beta": (math.log(0.6), 0.4),
    "gamma": (math.log(0.6), 0.3),
}
"""Mean and standard deviation of the logarithm of what is believed without a prior law: the exponents; B·η/L, the gain
of a fall from the peak lr to 0 over the lowest loss; and C·η^-γ·S at the end of the longest curve. About what the
authors' fits to language models have, in numbers that do not depend on the unit of lr or steps."""


def fit_schedule_law(curves: Sequence[ScheduledCurve], *, prior: ScheduleLaw | None = None) -> ScheduleLaw:
    """The multi-power law of some curves of one model.

    Args:
        curves: of runs that differ in schedule or length only. At least one whose lr falls, unless `prior` says what a
            fall gains.
        prior: the law of a like model, for instance a smaller one, whose shape is believed: one curve then is enough.

    Raises:
        LawRefused: too few reports, or no curve whose lr falls and no prior.

    Examples:
        >>> import numpy as np
        >>> from metaopt_hpo.scaling import ScheduledCurve, ScheduleLaw, fit_schedule_law
        >>> truth = ScheduleLaw(2.5, 0.6, 0.5, 500.0, 2.0, 0.6, 0.6, 1e-3)
        >>> steps = np.arange(500, 10_001, 250)
        >>> flat, linear = np.full(steps.size, 3e-4), 3e-4 * (1 - 0.9 * steps / 10_000)
        >>> seen = [ScheduledCurve(steps, truth.predict(steps, lr), lr) for lr in (flat, linear)]
        >>> law = fit_schedule_law(seen)
        >>> late = np.where(steps < 8000, 3e-4, 3e-5)
        >>> bool(abs(law.end(steps, late) / truth.end(steps, late) - 1) < 2e-3)
        True
    """
    if sum(c.steps.size for c in curves) < LEAST_POINTS:
        raise LawRefused("few-trials", f"the curves must hold at least {LEAST_POINTS} reports together")
    if prior is None and not any((np.diff(c.lr) < 0).any() for c in curves):
        reason = (
            "no curve's lr falls, so that nothing says what a decay gains: add one that does, or give prior="
        )
        raise LawRefused("one-schedule", reason)
    read = [_begun(c)[evenly(_begun(c).size)] for c in curves]
    sums = [ScheduleSums(c.steps, c.lr, c.before, rows) for c, rows in zip(curves, read, strict=True)]
    losses = np.log(np.concatenate([c.loss[rows] for c, rows in zip(curves, read, strict=True)]))
    each = np.concatenate([np.full(rows.size, min(INDEPENDENT / rows.size, 1.0)) for rows in read])
    believed = _Prior.of(sums, losses, prior)

    def residuals(theta: Array) -> Array:
        found = np.concatenate([s.loss(theta) for s in sums])
        off = (np.log(found) - losses) / ROBUST
        soft = np.sign(off) * np.sqrt(2.0 * (np.sqrt(1.0 + off * off) - 1.0))
        return np.concatenate([np.sqrt(each) * soft, believed.off(theta)])

    ends = []
    for start in believed.starts(sums, losses):
        done = least_squares(residuals, start, max_nfev=200)
        ends.append((float(done.cost), done.x))
    theta = min(ends, key=lambda e: e[0])[1]
    off = np.concatenate([np.log(s.loss(theta)) for s in sums]) - losses
    values = {n: float(v) for n, v in zip(NAMES, np.exp(theta), strict=True)}
    return ScheduleLaw(**values, noise=float(np.sqrt(np.mean(off * off))))


@dataclass(frozen=True)
class _Prior:
    """What is believed of the parameters beforehand, as a normal distribution of some logarithms.

    Attributes:
        mean, spread: of `NAMES`; the spread is infinite where nothing is known.
        peak: ln of the lr, and `longest` of the sum of rates, in which the rate is believed; 0 with a prior law.
    """

    mean: Array
    spread: Array
    peak: float = 0.0
    longest: float = 0.0

    @classmethod
    def of(cls, sums: Sequence[ScheduleSums], losses: Array, prior: ScheduleLaw | None) -> _Prior:
        if prior is not None:
            return cls(prior.parameters(), np.array([SPREAD.get(n, math.inf) for n in NAMES]))
        peak = math.log(max(s.peak for s in sums))
        longest = math.log(max(float(s.total[-1]) for s in sums))
        known = dict(USUAL)
        known["drop"] = (known["drop"][0] + float(losses.min()) - peak, known["drop"][1])
        mean, spread = np.array([known.get(n, (0.0, math.inf)) for n in NAMES]).T
        return cls(mean, spread, peak, longest)

    def off(self, theta: Array) -> Array:
        """Distances from it, in standard deviations."""
        value = theta.copy()
        value[4] += self.longest - float(np.exp(min(theta[6], 3.0))) * self.peak
        known = np.isfinite(self.spread)
        return np.asarray((value - self.mean)[known] / self.spread[known])

    def starts(self, sums: Sequence[ScheduleSums], losses: Array) -> list[Array]:
        """Where fits begin: what is believed, with floor and scale by regression."""
        total, z = np.concatenate([s.total for s in sums]), np.exp(losses)
        theta = self.mean.copy()
        theta[4] -= self.longest - math.exp(theta[6]) * self.peak
        design = np.column_stack([np.ones(total.size), total ** -math.exp(theta[2])])
        floor, scale = np.linalg.lstsq(design, z, rcond=None)[0]
        least = float(z.min())
        theta[:2] = math.log(max(float(floor), 0.3 * least)), math.log(max(float(scale), 1e-3 * least))
        out = [theta]
        for beta in STARTS:
            other = theta.copy()
            other[5] = math.log(beta)
            out.append(other)
        return out


def _begun(curve: ScheduledCurve) -> NDArray[np.intp]:
    """Reports after the first step with an lr above 0."""
    return np.flatnonzero((np.cumsum(curve.lr) > 0) & ((curve.steps > curve.steps[0]) | (curve.before > 0)))
