"""What the figures of a search's trials show, as plain data: its law, its step sizes, what it did not spend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from metaopt_hpo.scaling import LawRefused, fit
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable

LINE_POINTS = 40
REACH = 4.0
"""The law's line goes this factor past the largest size tried."""


class LawPoint(NamedTuple):
    """One completed trial."""

    trial: str
    size: float
    lr: float
    loss: float
    best: bool
    """Lowest loss of its size."""


class ScalingLawInfo(NamedTuple):
    """Learning rate against size: trials, and the law's optimum with its interval."""

    points: list[LawPoint]
    sizes: list[float]
    lr: list[float]
    low: list[float]
    high: list[float]
    message: str
    """Why there is no line, or the law's cautions."""


class Trajectory(NamedTuple):
    """Step size of one trial over its tokens."""

    trial: str
    strategy: str
    size: float
    tokens: list[float]
    step_size: list[float]
    loss: float


class TrajectoriesInfo(NamedTuple):
    """Step sizes of all trials that recorded them."""

    trajectories: list[Trajectory]


class PruningCurve(NamedTuple):
    """One trial's loss over tokens and how it ended."""

    trial: str
    size: float
    state: str
    reason: str
    tokens: list[float]
    loss: list[float]


class PruningInfo(NamedTuple):
    """Pruning decisions against what finished."""

    curves: list[PruningCurve]
    saved: float
    """FLOPs that stopped trials did not spend, as a part of all trials' planned FLOPs."""


def scaling_law_info(records: Sequence[TrialRecord]) -> ScalingLawInfo:
    """Learning rates against size, and the law that they bear; a refusal becomes its message."""
    done = [r for r in records if r.state == "complete" and math.isfinite(r.loss)]
    best = {size: min(r.loss for r in done if r.size == size) for size in {r.size for r in done}}
    points = [
        LawPoint(r.trial, r.size, r.lr, r.loss, r.loss == best[r.size])
        for r in done
        if not math.isfinite(r.found_lr)
    ]
    try:
        law = fit(TrialTable.from_records(records), allow_weak=True)
    except LawRefused as refused:
        return ScalingLawInfo(points, [], [], [], [], refused.reason)
    low, high = law.domain.size
    sizes = np.geomspace(low, high * REACH, LINE_POINTS)
    tokens = float(np.median([r.target_tokens for r in done]))
    estimates = [law.predict(float(s), tokens).lr for s in sizes]
    return ScalingLawInfo(
        points,
        [float(s) for s in sizes],
        [e.value for e in estimates],
        [e.low for e in estimates],
        [e.high for e in estimates],
        "; ".join(c.message for c in law.warnings),
    )


def trajectories_info(records: Iterable[TrialRecord]) -> TrajectoriesInfo:
    """Step sizes over tokens; a zero has no logarithm and is left out."""
    found = []
    for r in records:
        if r.curve is None:
            continue
        pairs = [(t, s) for t, s in zip(r.curve.tokens, r.curve.step_size, strict=True) if s > 0]
        if pairs:
            found.append(
                Trajectory(
                    r.trial,
                    r.strategy or "unknown",
                    r.size,
                    [t for t, _ in pairs],
                    [s for _, s in pairs],
                    r.loss,
                )
            )
    return TrajectoriesInfo(found)


def pruning_info(records: Iterable[TrialRecord]) -> PruningInfo:
    """Losses over tokens, and the part of the planned FLOPs that stopped trials did not spend."""
    curves, planned, saved = [], 0.0, 0.0
    for r in records:
        per_token = r.cost / r.tokens if r.tokens > 0 and math.isfinite(r.cost) else 6 * r.size
        if math.isfinite(r.target_tokens):
            planned += per_token * r.target_tokens
            if r.state in ("pruned", "diverged"):
                saved += per_token * max(0.0, r.target_tokens - r.tokens)
        if r.curve is not None:
            curves.append(
                PruningCurve(r.trial, r.size, r.state, r.reason, list(r.curve.tokens), list(r.curve.loss))
            )
    return PruningInfo(curves, saved / planned if planned else 0.0)
