"""A law of loss curves under learning-rate schedules: the multi-power law of Luo et al. (2025, arXiv 2503.12811).

    L(t) = L₀ + A·S(t)^-α − B·Σₖ (ηₖ₋₁ − ηₖ)·G(ηₖ^-γ·Sₖ(t)),    G(x) = 1 − (1 + C·x)^-β

S(t) is the sum of the learning rates of all steps up to t, warm-up included, and Sₖ(t) that since the lr fell at step
k: each fall lowers the loss, by more the longer training goes on after it. One law holds for one model and one batch;
what changes is the schedule and its length. Fitted to two or three curves it predicts where another schedule ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

from metaopt_hpo.scaling.estimates import LawRefused
from metaopt_hpo.scaling.forms.surface import Array

NODES = 600
"""Points of a schedule, and reports of a curve, that are computed with, evenly."""

BLOCK = 4096
"""Steps whose losses are computed at once."""

ROBUST = 2e-3
"""Residual of ln loss from which a reported loss counts less (soft L1): the noise of one report."""

INDEPENDENT = 10
"""Reports that a curve counts as, however many it holds: the law's own error is shared by neighbouring ones."""

LEAST_POINTS = 20
"""Reports that all curves must hold together."""

STARTS = (0.5, 0.3, 0.8)
"""β from which a fit begins; the best end is kept."""

NAMES = ("floor", "scale", "alpha", "drop", "rate", "beta", "gamma")
"""Fields of a law in the order of `ScheduleLaw.parameters`."""

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


@dataclass(frozen=True, init=False)
class ScheduledCurve:
    """Losses of one run, with the learning rates it was run at.

    Attributes:
        steps: optimizer steps at which a loss was reported, ascending.
        loss: one loss a report, smoothed or evaluated: single batches' losses are too noisy for a law.
        lr: the learning rate at each of these steps.
        before: sum of the learning rates of all steps before the first report (default: a linear warm-up from 0 over
            all of them, half their number times the first lr).

    Raises:
        ValueError: arrays of different lengths, steps that do not ascend, or a loss or lr that is not positive.

    Examples:
        >>> from metaopt_hpo.scaling.schedule_law import ScheduledCurve
        >>> ScheduledCurve([100, 200], [4.0, 3.5], [1e-3, 1e-3]).before
        0.05
    """

    steps: Array
    loss: Array
    lr: Array
    before: float

    def __init__(
        self, steps: ArrayLike, loss: ArrayLike, lr: ArrayLike, *, before: float | None = None
    ) -> None:
        at, rates = _schedule(steps, lr)
        losses = _array(loss)
        if losses.shape != at.shape:
            raise ValueError(f"loss must hold one value a step, got {losses.size} for {at.size} steps")
        if not (np.isfinite(losses) & (losses > 0)).all():
            raise ValueError("loss must hold positive, finite numbers: leave out reports that are not")
        values = {"steps": at, "loss": losses, "lr": rates, "before": _before(at, rates, before)}
        for name, value in values.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class ScheduleLaw:
    """The multi-power law of one model and batch; build one with `fit_schedule_law`.

    Examples:
        >>> from metaopt_hpo.scaling import ScheduleLaw
        >>> law = ScheduleLaw(2.5, 0.6, 0.5, 500.0, 2.0, 0.6, 0.6, 1e-3)
        >>> f"{law.end([500, 9000], [3e-4, 3e-4]):.2f}"
        '2.87'

    Attributes:
        floor, scale, alpha: L₀, A, α: the loss at a constant lr over the sum of learning rates.
        drop, rate, beta, gamma: B, C, β, γ: what a fall of the lr gains.
        noise: root mean square of ln loss about the fit.
    """

    floor: float
    scale: float
    alpha: float
    drop: float
    rate: float
    beta: float
    gamma: float
    noise: float

    def predict(self, steps: ArrayLike, lr: ArrayLike, *, before: float | None = None) -> Array:
        """Loss at each step of a schedule.

        Args:
            steps: optimizer steps, ascending.
            lr: the learning rate at each of them. What it falls between two of them it counts as having fallen at the
                second, so that a decay wants many.
            before: as in `ScheduledCurve`.

        Returns:
            One loss a step; infinite where no step with an lr above 0 has been taken.

        Examples:
            >>> from metaopt_hpo.scaling.schedule_law import ScheduleLaw
            >>> law = ScheduleLaw(2.5, 0.6, 0.5, 500.0, 2.0, 0.6, 0.6, 1e-3)
            >>> steps = range(500, 9001, 100)
            >>> constant, linear = [3e-4] * 86, [3e-4 * (1 - step / 10_000) for step in steps]
            >>> bool(law.predict(steps, linear)[-1] < law.predict(steps, constant)[-1])
            True
        """
        at, rates = _schedule(steps, lr)
        first, every = _before(at, rates, before), np.arange(at.size)
        blocks = np.array_split(every, math.ceil(at.size / BLOCK))
        return np.concatenate([_Path(at, rates, first, rows).loss(self.parameters()) for rows in blocks])

    def end(self, steps: ArrayLike, lr: ArrayLike, *, before: float | None = None) -> float:
        """Loss at the end of a schedule; see `predict`."""
        return float(self.predict(steps, lr, before=before)[-1])

    def parameters(self) -> Array:
        """Logarithms of `NAMES`."""
        return np.log([getattr(self, n) for n in NAMES])


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
        >>> from metaopt_hpo.scaling.schedule_law import ScheduledCurve, ScheduleLaw, fit_schedule_law
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
    read = [_begun(c)[_evenly(_begun(c).size)] for c in curves]
    paths = [_Path(c.steps, c.lr, c.before, rows) for c, rows in zip(curves, read, strict=True)]
    losses = np.log(np.concatenate([c.loss[rows] for c, rows in zip(curves, read, strict=True)]))
    each = np.concatenate([np.full(rows.size, min(INDEPENDENT / rows.size, 1.0)) for rows in read])
    believed = _Belief.of(paths, losses, prior)

    def residuals(theta: Array) -> Array:
        found = np.concatenate([p.loss(theta) for p in paths])
        off = (np.log(found) - losses) / ROBUST
        soft = np.sign(off) * np.sqrt(2.0 * (np.sqrt(1.0 + off * off) - 1.0))
        return np.concatenate([np.sqrt(each) * soft, believed.off(theta)])

    ends = []
    for start in believed.starts(paths, losses):
        done = least_squares(residuals, start, max_nfev=200)
        ends.append((float(done.cost), done.x))
    theta = min(ends, key=lambda e: e[0])[1]
    off = np.concatenate([np.log(p.loss(theta)) for p in paths]) - losses
    values = {n: float(v) for n, v in zip(NAMES, np.exp(theta), strict=True)}
    return ScheduleLaw(**values, noise=float(np.sqrt(np.mean(off * off))))


class _Path:
    """A schedule, ready for the sums over its steps.

    Args:
        rows: steps at which the loss is asked for; by default all.
    """

    def __init__(self, steps: Array, lr: Array, before: float, rows: NDArray[np.intp] | None = None) -> None:
        keep = _evenly(steps.size)
        at, rates = steps[keep], lr[keep]
        self.peak = float(lr.max())
        sums = before + np.concatenate([[0.0], np.cumsum(0.5 * (rates[1:] + rates[:-1]) * np.diff(at))])
        self.total = before + np.concatenate([[0.0], np.cumsum(0.5 * (lr[1:] + lr[:-1]) * np.diff(steps))])
        falls = rates[:-1] - rates[1:]
        changed = np.flatnonzero(np.abs(falls) > 1e-12 * self.peak)
        self.falls, self.log_lr = falls[changed], np.log(np.maximum(rates[1:][changed], 1e-9 * self.peak))
        if rows is not None:
            self.total = self.total[rows]
        self.since = np.maximum(self.total[:, None] - sums[1:][changed][None, :], 0.0)

    def loss(self, theta: Array) -> Array:
        """Loss at each step; θ holds logarithms of `NAMES`."""
        floor, scale, alpha, drop, rate, beta, gamma = np.exp(np.clip(theta, -80.0, 80.0))
        with np.errstate(divide="ignore"):
            out = floor + scale * self.total**-alpha
        if self.falls.size:
            log_rate = np.minimum(math.log(rate) - gamma * self.log_lr, 300.0)
            gained = -np.expm1(-beta * np.log1p(np.exp(log_rate) * self.since))
            out = out - drop * (gained @ self.falls)
        return np.asarray(np.maximum(out, 1e-9))


@dataclass(frozen=True)
class _Belief:
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
    def of(cls, paths: Sequence[_Path], losses: Array, prior: ScheduleLaw | None) -> _Belief:
        if prior is not None:
            return cls(prior.parameters(), np.array([SPREAD.get(n, math.inf) for n in NAMES]))
        peak = math.log(max(p.peak for p in paths))
        longest = math.log(max(float(p.total[-1]) for p in paths))
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

    def starts(self, paths: Sequence[_Path], losses: Array) -> list[Array]:
        """Where fits begin: what is believed, with floor and scale by regression."""
        total, z = np.concatenate([p.total for p in paths]), np.exp(losses)
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


def _evenly(count: int) -> NDArray[np.intp]:
    """At most `NODES` of so many, evenly, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, NODES)).round().astype(np.intp))


def _array(values: Any) -> Array:
    return np.asarray(values, dtype=float)


def _schedule(steps: ArrayLike, lr: ArrayLike) -> tuple[Array, Array]:
    """Both as arrays, checked."""
    at, rates = _array(steps), _array(lr)
    if at.ndim != 1 or at.shape != rates.shape or at.size < 2:
        raise ValueError(
            f"steps and lr must be equally long lists of at least two, got {at.size} and {rates.size}"
        )
    if not np.isfinite(at).all() or at[0] < 0 or (np.diff(at) <= 0).any():
        raise ValueError("steps must ascend from 0 or more")
    if not (np.isfinite(rates) & (rates >= 0)).all() or rates.max() <= 0:
        raise ValueError("lr must hold finite numbers of at least 0, and one above 0")
    return at, rates


def _before(steps: Array, lr: Array, given: float | None) -> float:
    """Sum of the learning rates before the first step."""
    if given is None:
        return 0.5 * float(steps[0]) * float(lr[0])
    if not (math.isfinite(given) and given >= 0):
        raise ValueError(f"before must be a finite number of at least 0, got {given!r}")
    return float(given)
