"""Where the loss of a run is expected, at its end and on the way, from other runs' ends and curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metaopt_hpo.plan.estimate import Z90
from metaopt_hpo.trials.record import TrialRecord

LEAST = 3
"""Finished pilots from which a loss is predicted."""

LEAP = 4.0
"""Factor from the nearest pilot up to which a loss is predicted along an axis that the pilots do not vary: by the prior
of its slope alone."""

STRAIGHT = 3.0
"""Factor beyond the pilots, in size or tokens, up to which ln loss is linear. With the floors of published laws of loss
(Hoffmann et al. 2022, Besiroglu et al. 2024) a plane through three pilots misses the truth from about there on."""

FIRST = 1 / 32
"""Share of a run before which nothing is expected of it: warm-ups and first reports differ too much."""

SLOPE, SLOPE_SPREAD = -0.06, 0.05
"""Prior of ∂ ln loss / ∂ ln size and / ∂ ln tokens at the end of runs, and its standard deviation: what small language
models show."""

WAY_SPREAD = 0.1
"""The same standard deviation on the way, where the slope in size may have either sign."""

NOISE = 0.02
"""Scatter of ln loss about the plane that a few pilots are taken to have, with the weight of three runs."""

MODEL_ERROR, WAY_ERROR = 0.01, 0.025
"""Standard deviation, ln loss, of a prediction beside what its fit leaves: at the end, and on the way, where the lr at
that moment counts too. Bands with these cover 90 % of the ladder's runs (`python -m studies.ladder --report-only`)."""


@dataclass(frozen=True)
class Band:
    """Where a loss is expected, at 90 %."""

    low: float
    high: float

    def holds(self, loss: float) -> bool:
        """Whether a loss lies within."""
        return self.low <= loss <= self.high


def band(record: TrialRecord, pilots: Sequence[TrialRecord]) -> Band | None:
    """Where the loss of a run is expected at the tokens it has seen.

    ln loss of the other runs, at the same share of each, is linear in ln size and ln tokens, with a prior on the
    slopes. A ratio of the loss on the way to the loss at the end would not do: it grows with size.

    Returns:
        None with too few runs (`reach`), or in the first thirty-second part of a run.
    """
    done = [r for r in pilots if r.state == "complete" and r.loss > 0 and r.study != record.study]
    share = record.tokens / record.planned_tokens if record.planned_tokens > 0 else math.nan
    if not FIRST <= share <= 1:
        return None
    if share == 1:
        seen = [(r, r.loss) for r in done]
    else:
        seen = [(r, loss) for r in done if (loss := _loss_at(r, share)) is not None]
    if not reach([r for r, _ in seen], record.size, record.planned_tokens):
        return None
    spread, error = (SLOPE_SPREAD, MODEL_ERROR) if share == 1 else (WAY_SPREAD, WAY_ERROR)
    centre, sd = _plane(seen, record.size, record.planned_tokens, spread, error)
    return Band(math.exp(centre - Z90 * sd), math.exp(centre + Z90 * sd))


def reach(pilots: Sequence[TrialRecord], size: float, tokens: float) -> bool:
    """Whether pilots are enough to predict a loss there: `LEAST` of them, with slopes of their own or a short way."""
    for values, at in (([r.size for r in pilots], size), ([r.planned_tokens for r in pilots], tokens)):
        if not values or (
            max(values) < 1.01 * min(values) and max(at / values[0], values[0] / at) > 1.01 * LEAP
        ):
            return False
    return len(pilots) >= LEAST


def predicted_end(ends: Sequence[TrialRecord], size: float, tokens: float) -> tuple[float, float]:
    """ln loss at the end of a run, and its standard deviation."""
    return _plane([(r, r.loss) for r in ends], size, tokens, SLOPE_SPREAD, MODEL_ERROR)


def _plane(
    seen: Sequence[tuple[TrialRecord, float]], size: float, tokens: float, spread: float, error: float
) -> tuple[float, float]:
    """ln loss at (size, tokens) of the plane through (run, loss), and its standard deviation.

    Losses have floors, so that slopes flatten by nobody knows how much: beyond `STRAIGHT` the ends of the interval are
    what the plane says there and at that distance.
    """
    rows = np.array([[1.0, math.log(r.size / size), math.log(r.planned_tokens / tokens)] for r, _ in seen])
    z = np.log([loss for _, loss in seen])
    noise = NOISE
    prior = np.diag([1e-6, 1 / spread**2, 1 / spread**2])
    mean = np.array([float(z.mean()), SLOPE, SLOPE])
    for _ in range(2):
        precision = rows.T @ rows / noise**2 + prior
        w = np.linalg.solve(precision, rows.T @ z / noise**2 + prior @ mean)
        left = z - rows @ w
        noise = math.sqrt((3 * NOISE**2 + float(left @ left)) / (3 + len(seen)))
    covariance = np.linalg.inv(precision)
    limit = math.log(STRAIGHT)
    near = np.clip(0.0, rows[:, 1:].min(axis=0) - limit, rows[:, 1:].max(axis=0) + limit)
    ends = []
    for at in (np.array([1.0, 0.0, 0.0]), np.array([1.0, *near])):
        half = Z90 * math.sqrt(float(at @ covariance @ at) + noise**2 + error**2)
        ends += [float(w @ at) - half, float(w @ at) + half]
    low, high = min(ends), max(ends)
    return 0.5 * (low + high), 0.5 * (high - low) / Z90


def _loss_at(r: TrialRecord, share: float) -> float | None:
    """Loss at a share of a run, interpolated in logarithms; None before its first report."""
    curve = r.curve
    if curve is None:
        return None
    at = share * r.planned_tokens
    inside = [(t, v) for t, v in zip(curve.tokens, curve.loss, strict=True) if t > 0 and v > 0]
    if len(inside) < 2 or at < inside[0][0] * 0.999:
        return None
    x = np.log([t for t, _ in inside])
    y = np.log([v for _, v in inside])
    return math.exp(float(np.interp(math.log(at), x, y)))
