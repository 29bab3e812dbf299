"""What the report shows of single trials: how each loss fell, and which choices the losses depend on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.comparison.methods import method
from metaopt_hpo.comparison.outcome import Outcome
from metaopt_hpo.report import words
from metaopt_hpo.trials.record import TrialRecord

Array = NDArray[np.float64]

FEWEST = 8
"""Trials below which shares of variance would be chance."""

KNOWN = {"lr", "size", "tokens", "batch", "strategy", "seed"}
"""Parameters that are fields of a record."""


@dataclass(frozen=True)
class LossLine:
    """One trial's loss on its way."""

    method: str
    title: str
    trial: str
    seed: int
    lr: float
    state: str
    tokens: tuple[float, ...]
    loss: tuple[float, ...]


@dataclass(frozen=True)
class LossCurves:
    """Loss against tokens, of every trial at the target size that reported on its way."""

    lines: tuple[LossLine, ...]
    without: int
    """Trials at the target size that reported no loss on their way."""

    @property
    def absent(self) -> str:
        """Why nothing can be drawn; empty where it can."""
        return (
            ""
            if self.lines
            else "No trial at the target size reported a loss on its way, so there are no curves."
        )

    @property
    def summary(self) -> str:
        """The figure in words."""
        parts = []
        for title in dict.fromkeys(line.title for line in self.lines):
            own = [line.loss[-1] for line in self.lines if line.title == title]
            parts.append(f"{title}, {words.plural(len(own), 'trial')}: last losses {_range(own)}")
        text = f"Loss of every trial at the target size against the tokens it had seen. {'; '.join(parts)}."
        return text + (f" {words.plural(self.without, 'trial')} reported none." if self.without else "")


def loss_curves(outcome: Outcome) -> LossCurves:
    """Curves of all trials at the target size, points that are not finite left out."""
    lines, without = [], 0
    for r in outcome.comparison.table.records():
        if r.size != outcome.comparison.plan.size or r.method not in outcome.comparison.plan.methods:
            continue
        points = [
            (t, x)
            for t, x in (zip(r.curve.tokens, r.curve.loss, strict=True) if r.curve else ())
            if math.isfinite(x)
        ]
        if len(points) < 2:
            without += 1
            continue
        tokens, losses = zip(*points, strict=True)
        title = method(r.method).title
        lr = r.found_lr if math.isfinite(r.found_lr) else r.lr
        lines.append(LossLine(r.method, title, r.trial, r.seed, lr, str(r.state), tokens, losses))
    return LossCurves(tuple(lines), without)


@dataclass(frozen=True)
class Importance:
    """How much of the variance of ln loss each parameter explains; with what none explains they sum to one."""

    shares: tuple[tuple[str, float], ...]
    """Parameter and its share, largest first."""
    trials: int

    @property
    def unexplained(self) -> float:
        """The part that no parameter explains: noise, and what a quadratic cannot follow."""
        return max(0.0, 1.0 - sum(share for _, share in self.shares))

    @property
    def absent(self) -> str:
        """Why nothing can be drawn; empty where it can."""
        if self.trials < FEWEST:
            return f"Importance needs at least {FEWEST} complete trials at the target size with a rate of their own."
        return (
            "" if self.shares else "No parameter took two values, so none can be more important than another."
        )

    @property
    def summary(self) -> str:
        """The figure in words."""
        parts = [f"{name} {share:.0%}" for name, share in self.shares]
        return (
            f"Share of the variance of ln loss at the target size that each parameter explains, over "
            f"{words.plural(self.trials, 'complete trial')} whose rate was given: {', '.join(parts)}; "
            f"{self.unexplained:.0%} is explained by none."
        )


def importance(records: Sequence[TrialRecord]) -> Importance:
    """Share of variance of each parameter that varied, averaged over the orders in which they can enter a regression.

    A number enters as ln and its square, another value as categories. The measure is LMG (Lindeman, Merenda and Gold,
    1980), a Shapley value of R², so that shares of correlated parameters do not count twice.
    """
    used = [
        r
        for r in records
        if r.state == "complete" and r.loss > 0 and math.isfinite(r.loss) and not r.self_tuning
    ]
    groups = _groups(used) if len(used) >= FEWEST else {}
    y = np.log([r.loss for r in used])
    if not groups or float(np.ptp(y)) == 0.0:
        return Importance((), len(used))
    names = sorted(groups)[:6]
    explained = {
        subset: _r_squared([groups[n] for n in subset], y)
        for k in range(len(names) + 1)
        for subset in itertools.combinations(names, k)
    }
    shares = []
    for name in names:
        others = [n for n in names if n != name]
        total = 0.0
        for k in range(len(others) + 1):
            weight = 1 / (len(names) * math.comb(len(others), k))
            for subset in itertools.combinations(others, k):
                with_it = tuple(sorted((*subset, name)))
                total += weight * (explained[with_it] - explained[subset])
        shares.append((name, max(0.0, total)))
    return Importance(tuple(sorted(shares, key=lambda s: -s[1])), len(used))


def _groups(records: Sequence[TrialRecord]) -> dict[str, Array]:
    """Regressors of every parameter that took two values."""
    values: dict[str, list[object]] = {
        "learning rate": [r.lr for r in records],
        "batch": [r.batch for r in records],
        "seed": [str(r.seed) for r in records],
        "schedule": [r.strategy for r in records],
    }
    given = [r.params for r in records]
    for name in sorted({n for p in given for n in p if all(n in q for q in given)} - KNOWN):
        values.setdefault(name, [p[name] for p in given])
    found = {}
    for name, column in values.items():
        if name != "learning rate" and len({str(v) for v in column}) > len(records) / 2:
            continue  # as many values as trials explain anything
        if all(isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < math.inf for v in column):
            x = np.log(np.array(column, dtype=float))
            if np.ptp(x) > 0:
                x = (x - x.mean()) / x.std()
                found[name] = np.column_stack([x, x * x])
        else:
            kinds = sorted({str(v) for v in column})
            if len(kinds) > 1:
                found[name] = np.array([[str(v) == k for k in kinds[1:]] for v in column], dtype=float)
    return found


def _r_squared(groups: Sequence[Array], y: Array) -> float:
    x = np.column_stack([np.ones(len(y)), *groups])
    fitted = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return 1.0 - float(((y - fitted) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def _range(values: Sequence[float]) -> str:
    low, high = words.loss(min(values)), words.loss(max(values))
    return low if low == high else f"{low} to {high}"
