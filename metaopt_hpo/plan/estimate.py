"""What pilots say of the best lr elsewhere: a linear-Gaussian model of ln lr* over (ln size, ln tokens).

    schedule runs of a cell:   x* = a₀ + a₁ n + a₂ d + cell's scatter + error of locating it
    a MetaOptimize run:        found = a₀ + a₁ n + a₂ d + b + cell's scatter + its own scatter

n and d are ln size and ln tokens over the target's. The offset b, which all found rates share, and the scatter of
found rates are components of their own: with schedule runs beside them both are learned, and the law is read without
b. Two or three runs a size are enough, for slopes have a prior; with more it hardly matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metaopt_hpo.plan.knowledge import FOUND_OFFSET, FOUND_SCATTER
from metaopt_hpo.scaling.fitting.pointfit import SLOPE_PRIOR
from metaopt_hpo.scaling.forms.surface import CELL_SCATTER, RUN_ERROR, Array
from metaopt_hpo.scaling.policy.design import SLOPE_SPREAD
from metaopt_hpo.trials.record import TrialRecord

BELIEF = 4.0
"""How many found rates that prior scatter counts as."""

CURVATURE = 0.1
"""∂² ln loss / ∂ (ln lr)² where a cell has two runs only."""

Z90 = 1.645


@dataclass(frozen=True)
class Rate:
    """A learning rate and what is known of it.

    Attributes:
        value: the estimate.
        sd: standard deviation of its logarithm.
    """

    value: float
    sd: float

    @property
    def low(self) -> float:
        """Lower end of the interval at 90 %."""
        return self.value * math.exp(-Z90 * self.sd)

    @property
    def high(self) -> float:
        """Upper end of the interval at 90 %."""
        return self.value * math.exp(Z90 * self.sd)


@dataclass(frozen=True)
class Observation:
    """One cell's word on its own optimum: from schedule runs, or one found rate."""

    size: float
    tokens: float
    x: float
    sd: float
    found: bool


class Estimate:
    """The law of lr after these runs; a pure function of them.

    Args:
        records: pilots, in any order.
        size, tokens: of the target.
        lr: lowest and highest lr of the search, which say where the optimum may be before any run.
    """

    def __init__(
        self, records: Sequence[TrialRecord], size: float, tokens: float, *, lr: tuple[float, float]
    ) -> None:
        self.target = (size, tokens)
        self._bounds = lr
        middle = 0.5 * math.log(lr[0] * lr[1])
        box = math.log(lr[1] / lr[0]) / math.sqrt(12.0)
        slopes = SLOPE_PRIOR["lr"]
        self._mean = np.array([middle, slopes["size"], slopes["tokens"], 0.0])
        self._prior = np.diag(1.0 / np.array([box, SLOPE_SPREAD, SLOPE_SPREAD, FOUND_OFFSET]) ** 2)
        self.seen = tuple(observations(records))
        self._scheduled: dict[tuple[float, float], int] = {}
        for r in records:
            if not r.self_tuning and r.state == "complete":
                cell = (r.size, r.planned_tokens)
                self._scheduled[cell] = self._scheduled.get(cell, 0) + 1
        self.scatter = FOUND_SCATTER
        for _ in range(3):  # the scatter of found rates and the fit depend on each other
            self._solve()
            own = [self._left(o) ** 2 for o in self.seen if o.found]
            self.scatter = math.sqrt(
                (BELIEF * FOUND_SCATTER**2 + math.fsum(own)) / (BELIEF + len(own))
                if own
                else FOUND_SCATTER**2
            )
        self._solve()

    def at(self, size: float, tokens: float) -> Rate:
        """The best lr of a run, within the range of the search."""
        row = self._row(size, tokens)
        sd = math.sqrt(float(row @ self._covariance @ row) + CELL_SCATTER**2)
        low, high = self._bounds
        return Rate(min(max(math.exp(float(row @ self._w)), low), high), sd)

    @property
    def rate(self) -> Rate:
        """The target's."""
        return self.at(*self.target)

    @property
    def slopes(self) -> tuple[float, float]:
        """Exponents of lr* in size and in tokens."""
        return float(self._w[1]), float(self._w[2])

    @property
    def offset(self) -> tuple[float, float]:
        """b, and its standard deviation."""
        return float(self._w[3]), math.sqrt(float(self._covariance[3, 3]))

    def sd_after(self, runs: Sequence[tuple[float, float, bool]]) -> float:
        """Standard deviation of ln lr at the target if these runs came too; no loss needs to be known for that.

        Args:
            runs: (size, tokens, whether it finds its own lr) of each.
        """
        precision = self._precision.copy()
        counts: dict[tuple[float, float], int] = {}
        for size, tokens, found in runs:
            row = self._row(size, tokens, found=found)
            if found:
                precision += np.outer(row, row) / (self.scatter**2 + CELL_SCATTER**2)
                continue
            cell = (size, tokens)
            have = counts.get(cell, self._scheduled.get(cell, 0))
            counts[cell] = have + 1
            for n, sign in ((have, -1.0), (have + 1, 1.0)):  # the cell's word is replaced by a better one
                if n > 1:
                    precision += sign * np.outer(row, row) / (CELL_SCATTER**2 + RUN_ERROR**2 / (n - 1))
        row = self._row(*self.target)
        return math.sqrt(max(0.0, float(row @ np.linalg.solve(precision, row))) + CELL_SCATTER**2)

    def _row(self, size: float, tokens: float, *, found: bool = False) -> Array:
        n, d = math.log(size / self.target[0]), math.log(tokens / self.target[1])
        return np.array([1.0, n, d, float(found)])

    def _left(self, o: Observation) -> float:
        return o.x - float(self._row(o.size, o.tokens, found=o.found) @ self._w)

    def _solve(self) -> None:
        precision = self._prior.copy()
        right = self._prior @ self._mean
        for o in self.seen:
            row = self._row(o.size, o.tokens, found=o.found)
            weight = 1.0 / (CELL_SCATTER**2 + (self.scatter**2 if o.found else o.sd**2))
            precision += weight * np.outer(row, row)
            right += weight * o.x * row
        self._precision = precision
        self._covariance = np.linalg.inv(precision)
        self._w = self._covariance @ right


def observations(records: Sequence[TrialRecord]) -> list[Observation]:
    """What each cell says of its own optimum: found rates one by one, schedule runs by a parabola through the best."""
    out: list[Observation] = []
    scheduled: dict[tuple[float, float, float, int], list[TrialRecord]] = {}
    for r in records:
        if r.self_tuning:
            if r.state == "complete" and r.found_lr > 0:
                out.append(Observation(r.size, r.planned_tokens, math.log(r.found_lr), 0.0, True))
        else:
            scheduled.setdefault((r.size, r.planned_tokens, r.batch, r.seed), []).append(r)
    for (size, tokens, _, _), runs in scheduled.items():
        located = _optimum(runs)
        if located is not None:
            out.append(Observation(size, tokens, *located, False))
    return out


def _optimum(runs: Sequence[TrialRecord]) -> tuple[float, float] | None:
    """ln lr* of runs that differ in lr alone, and the error of locating it; None for fewer than two."""
    best: dict[float, float] = {}
    for r in runs:
        if r.state == "complete" and math.isfinite(r.loss) and r.loss > 0:
            best[math.log(r.lr)] = math.log(r.loss)
    if len(best) < 2:
        return None
    x, z = (np.array(v) for v in zip(*sorted(best.items()), strict=True))
    i = int(np.argmin(z))
    near = slice(max(0, i - 1), i + 2)
    a, b = x[near], z[near]
    # z = z₀ + ½h(u − u*)² about the best run, its curvature drawn to the usual one
    u = a - x[i]
    design = np.stack([np.ones_like(u), u, 0.5 * u**2], axis=1)
    hold = np.diag([1e-12, 1e-12, 1e-3])
    w = np.linalg.solve(design.T @ design + hold, design.T @ b + hold @ np.array([0.0, 0.0, CURVATURE]))
    reach = math.log(2.0) if len(x) < 3 else float(max(np.diff(x).max(), math.log(1.5)))
    shift = -w[1] / w[2] if w[2] > 0.02 else math.copysign(reach, -w[1])
    edge = i in (0, len(x) - 1)
    error = RUN_ERROR / math.sqrt(len(x) - 1) * (1.5 if edge else 1.0)
    return float(x[i] + np.clip(shift, -reach, reach)), error
