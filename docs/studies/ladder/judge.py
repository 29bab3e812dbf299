"""What pilots are worth: found rates against tuned optima, and a plan's lr at the next sizes for the same compute.

A larger cell's excess is measured, not modelled: ln loss there, interpolated over its own WSD runs at the lr that the
pilots gave, over the best of those runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metaopt_hpo.plan.estimate import Estimate, observations
from metaopt_hpo.trials.record import TrialRecord
from studies.ladder.runs import GRID, LadderError
from studies.section import Section

SEARCH = (1e-3, 1e-1)
"""Range of lr that designs start from."""

FAR = 2.0
"""Ratio of a held-out cell's size to the largest pilot's, at the least."""


@dataclass(frozen=True)
class Cell:
    """All runs of one size, length and seed."""

    size: float
    tokens: float
    seed: int
    own: TrialRecord
    grid: tuple[TrialRecord, ...]

    @property
    def optimum(self) -> float:
        """ln lr* of the grid."""
        return observations(self.grid)[0].x

    def excess(self, lr: float) -> float:
        """ln loss of the grid's interpolation at an lr, over its best; beyond its ends, the end's slope goes on."""
        runs = sorted(self.grid, key=lambda r: r.lr)
        x, z = np.log([r.lr for r in runs]), np.log([r.loss for r in runs])
        i = int(np.clip(np.searchsorted(x, math.log(lr)) - 1, 0, len(x) - 2))
        slope = (z[i + 1] - z[i]) / (x[i + 1] - x[i])
        return float(z[i] + slope * (math.log(lr) - x[i]) - z.min())


def cells(records: Sequence[TrialRecord], rates: int = len(GRID), least: int = 6) -> list[Cell]:
    """The complete cells of a ladder: one run of MetaOptimize and one of WSD at each of `rates` rates."""
    by: dict[tuple[float, float, int], list[TrialRecord]] = {}
    for r in records:
        if r.state == "complete" and r.loss > 0:
            by.setdefault((r.size, r.planned_tokens, r.seed), []).append(r)
    out = []
    for (size, tokens, seed), runs in sorted(by.items()):
        own = [r for r in runs if r.self_tuning and r.found_lr > 0]
        grid = [r for r in runs if not r.self_tuning]
        if len(own) == 1 and len(grid) == rates:
            out.append(Cell(size, tokens, seed, own[0], tuple(grid)))
    if len(out) < least:
        raise LadderError(f"the ladder has {len(out)} complete cells; run more of it: make ladder")
    return out


def found(table: Sequence[Cell]) -> Section:
    """Bias and scatter of found rates, and what the run itself gave away."""
    out = Section(
        "Found rates against the best of WSD, by cell",
        ("parameters", "steps", "seeds", "lr*", "found / lr*", "sd of ln", "loss of the run over the best"),
        note="lr* is the parabola's through the best of five WSD runs; found / lr* is a geometric mean over seeds.",
    )
    for size, tokens in sorted({(c.size, c.tokens) for c in table}):
        own = [c for c in table if (c.size, c.tokens) == (size, tokens)]
        off = [math.log(c.own.found_lr) - c.optimum for c in own]
        over = [math.log(c.own.loss / min(r.loss for r in c.grid)) for c in own]
        out.rows.append(
            (
                f"{size:.4g}",
                f"{tokens / own[0].own.batch:.0f}",
                str(len(own)),
                f"{math.exp(float(np.mean([c.optimum for c in own]))):.3g}",
                f"{math.exp(float(np.mean(off))):.2f}",
                f"{float(np.std(off, ddof=1)):.2f}" if len(own) > 1 else "–",
                f"{math.expm1(float(np.mean(over))):+.1%}",
            )
        )
    every = [math.log(c.own.found_lr) - c.optimum for c in table]
    between = float(np.std(every, ddof=1))
    out.note += f" Over all {len(every)} cells: bias {float(np.mean(every)):+.2f} and scatter {between:.2f}, ln units."
    return out


DESIGNS = ("MetaOptimize", "grid", "both")


def pilots(design: str, small: Sequence[Cell], budget: float) -> list[TrialRecord]:
    """Runs of a design within a budget of FLOPs, cheapest cells first; `both` gives grids half of it."""
    ordered = sorted(small, key=lambda c: c.size * c.tokens)
    if design == "both":
        own = pilots("MetaOptimize", small, budget / 2)
        return own + pilots("grid", small, budget - math.fsum(r.cost for r in own))
    chosen: list[TrialRecord] = []
    spent = 0.0
    for c in ordered:
        # a grid shows its optimum with three runs: the middle and its neighbours
        runs = [c.own] if design == "MetaOptimize" else sorted(c.grid, key=lambda r: r.lr)[1:4]
        cost = math.fsum(r.cost for r in runs)
        if spent + cost > budget:
            break
        chosen += runs
        spent += cost
    return chosen


def worth(table: Sequence[Cell], shares: Sequence[float] = (0.05, 0.15, 0.5)) -> Section:
    """Excess at the next sizes for the same budget, by design."""
    out = Section(
        "Excess loss at sizes at least twice the largest pilot's, for the same compute",
        (
            "pilots' cost, of the held-out run",
            "design",
            "predictions",
            "mean excess",
            "worst",
            "distance of ln lr",
            "bias",
            "in 90 % interval",
        ),
        note="Every cell of the larger widths is held out in turn; pilots are smaller cells of the same seed, cheapest "
        "first, up to the budget; `both` gives found rates half of it. "
        "Only cells that every design can predict count. Excess is measured on the held-out cell's own WSD runs.",
    )
    sizes = sorted({c.size for c in table})
    for share in shares:
        found_by = {design: _Score() for design in DESIGNS}
        for c in table:
            if c.size < sizes[len(sizes) // 2]:
                continue
            small = [o for o in table if o.seed == c.seed and o.size * FAR <= c.size]
            bought = {d: pilots(d, small, share * max(r.cost for r in c.grid)) for d in DESIGNS}
            if min(map(len, bought.values())) < 2:
                continue  # the designs meet on the same cells
            for design, runs in bought.items():
                found_by[design].add(c, Estimate(runs, c.size, c.tokens, lr=SEARCH))
        out.rows += [
            (f"{share:.0%}", design, *score.row()) for design, score in found_by.items() if score.off
        ]
    return out


class _Score:
    """How one design did over the held-out cells."""

    def __init__(self) -> None:
        self.over: list[float] = []
        self.off: list[float] = []
        self.inside: list[bool] = []

    def add(self, cell: Cell, law: Estimate) -> None:
        rate = law.at(cell.size, cell.tokens)
        self.over.append(cell.excess(rate.value))
        self.off.append(math.log(rate.value) - cell.optimum)
        self.inside.append(math.log(rate.low) <= cell.optimum <= math.log(rate.high))

    def row(self) -> tuple[str, ...]:
        return (
            str(len(self.off)),
            f"{math.expm1(float(np.mean(self.over))):.2%}",
            f"{math.expm1(max(self.over)):.1%}",
            f"{float(np.mean(np.abs(self.off))):.2f}",
            f"{float(np.mean(self.off)):+.2f}",
            f"{float(np.mean(self.inside)):.0%}",
        )
