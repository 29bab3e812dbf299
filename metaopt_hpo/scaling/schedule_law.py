"""A law of loss curves under learning-rate schedules: the multi-power law of Luo et al. (2025, arXiv 2503.12811).

    L(t) = L₀ + A·S(t)^-α − B·Σₖ (ηₖ₋₁ − ηₖ)·G(ηₖ^-γ·Sₖ(t)),    G(x) = 1 − (1 + C·x)^-β

S(t) is the sum of the learning rates of all steps up to t, warm-up included, and Sₖ(t) that since the lr fell at step
k: each fall lowers the loss, by more the longer training goes on after it. One law holds for one model and one batch;
what changes is the schedule and its length. Fitted to two or three curves it predicts where another schedule ends
(`scaling.schedule_fit`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaopt_hpo.scaling.forms.surface import Array

NODES = 600
"""Points of a schedule, and reports of a curve, that are computed with, evenly."""

BLOCK = 4096
"""Steps whose losses are computed at once."""

NAMES = ("floor", "scale", "alpha", "drop", "rate", "beta", "gamma")
"""Fields of a law in the order of `ScheduleLaw.parameters`."""


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
        return np.concatenate(
            [ScheduleSums(at, rates, first, rows).loss(self.parameters()) for rows in blocks]
        )

    def end(self, steps: ArrayLike, lr: ArrayLike, *, before: float | None = None) -> float:
        """Loss at the end of a schedule; see `predict`."""
        return float(self.predict(steps, lr, before=before)[-1])

    def parameters(self) -> Array:
        """Logarithms of `NAMES`."""
        return np.log([getattr(self, n) for n in NAMES])


class ScheduleSums:
    """A schedule, ready for the sums over its steps.

    Args:
        rows: steps at which the loss is asked for; by default all.
    """

    def __init__(self, steps: Array, lr: Array, before: float, rows: NDArray[np.intp] | None = None) -> None:
        keep = evenly(steps.size)
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


def evenly(count: int) -> NDArray[np.intp]:
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
