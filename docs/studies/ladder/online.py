"""Light tuning online: MetaOptimize from a law's lr, beside the schedule at that lr and MetaOptimize alone.

Targets are the largest width of the ladder, at least ten times the largest pilot. Runs start from the same weights and
see the same batches; the schedule's loss at any lr is interpolated over the cell's five WSD runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metaopt_hpo.plan.estimate import Estimate
from metaopt_hpo.trials.record import TrialRecord
from studies.ladder.judge import SEARCH, Cell, cells, pilots
from studies.ladder.runs import WIDTHS, Rung
from studies.section import Section

KEPT = Path(__file__).parent / "online.parquet"

FAR = 10.0
"""Ratio of the target's size to the largest pilot's, at the least."""

SHARE = 0.15
"""What the pilots may cost, of the target."""

WRONG = 3.0
"""Factor by which a law is made wrong, above and below."""

LEAST_WITHIN = 4.0
"""Interval of such a law: it contains the optimum."""


LONG = (32, 2048, (5e-3, 1e-2, 2e-2))
"""Width, steps and WSD rates of a longer run beside them: what a run measures counts more there."""


def design(table: Sequence[Cell], batch: float) -> list[tuple[Cell, str, float, Rung]]:
    """(cell, what the law is, its lr, the run) for every cell of the largest width."""
    out = []
    largest = max(c.size for c in table)
    for cell in table:
        if cell.size < largest:
            continue
        small = [c for c in table if c.seed == cell.seed and c.size * FAR <= cell.size]
        bought = pilots("both", small, SHARE * max(r.cost for r in cell.grid))
        rate = Estimate(bought, cell.size, cell.tokens, lr=SEARCH).at(cell.size, cell.tokens)
        within = math.sqrt(rate.high / rate.low)
        out.append(_run(cell, "as predicted", rate.value, within, WIDTHS[-1], batch))
        out += _wrong(cell, within, WIDTHS[-1], batch)
    return out


def long_grid() -> list[Rung]:
    """What is to be known of the longer run before any law of it is made wrong."""
    width, steps, rates = LONG
    return [Rung(width=width, steps=steps, seed=0, lr=lr) for lr in (None, *rates)]


def long_design(kept: Sequence[TrialRecord], batch: float) -> list[tuple[Cell, str, float, Rung]]:
    """The same for the longer run, whose own optimum takes the place of a law's prediction."""
    width, steps, rates = LONG
    grid = {rung.key for rung in long_grid()}
    known = [r for r in kept if r.trial in grid]
    if len(known) < len(grid):
        return []
    (cell,) = cells(known, len(rates), 1)
    right = _run(cell, "right", math.exp(cell.optimum), LEAST_WITHIN, width, batch)
    chosen = [right, *_wrong(cell, LEAST_WITHIN, width, batch)]
    return [(c, f"{law}, {steps} steps", lr, rung) for c, law, lr, rung in chosen]


def _wrong(cell: Cell, within: float, width: int, batch: float) -> list[tuple[Cell, str, float, Rung]]:
    best, within = math.exp(cell.optimum), max(within, LEAST_WITHIN)
    return [
        _run(cell, f"{WRONG:g} times too high", best * WRONG, within, width, batch),
        _run(cell, f"{WRONG:g} times too low", best / WRONG, within, width, batch),
    ]


def _run(
    cell: Cell, law: str, lr: float, within: float, width: int, batch: float
) -> tuple[Cell, str, float, Rung]:
    lr, within = float(f"{lr:.4g}"), float(f"{within:.3g}")
    steps = round(cell.tokens / batch)
    rung = Rung(width=width, steps=steps, seed=cell.seed, lr=None, expected=lr, within=within)
    return cell, law, lr, rung


def compared(chosen: Sequence[tuple[Cell, str, float, Rung]], kept: Sequence[TrialRecord]) -> Section:
    """Losses over the best of each cell's WSD runs."""
    runs = {r.trial: r for r in kept}
    section = Section(
        "A law's lr at the target: on the schedule, and adapted online",
        (
            "law",
            "runs",
            "its lr / lr*",
            "schedule at its lr",
            "MetaOptimize from it",
            "committed / lr*",
            "MetaOptimize alone",
        ),
        note="Loss over the best of the cell's WSD runs, means. Targets of "
        f"{FAR:g} times the largest pilot or more, pilots for {SHARE:.0%} of the target.",
    )
    for name in dict.fromkeys(n for _, n, _, _ in chosen):
        rows = [
            (cell, lr, runs[rung.key])
            for cell, n, lr, rung in chosen
            if n == name and rung.key in runs and math.isfinite(runs[rung.key].loss)
        ]
        if not rows:
            continue
        best = [min(r.loss for r in cell.grid) for cell, _, _ in rows]
        columns = (
            [math.expm1(cell.excess(lr)) for cell, lr, _ in rows],
            [run.loss / b - 1 for (_, _, run), b in zip(rows, best, strict=True)],
            [cell.own.loss / b - 1 for (cell, _, _), b in zip(rows, best, strict=True)],
        )
        schedule, online, alone = (f"{float(np.mean(c)):+.1%} (worst {max(c):+.1%})" for c in columns)
        law, committed = (
            f"{math.exp(float(np.mean([math.log(v) - cell.optimum for cell, v in pairs]))):.2f}"
            for pairs in ([(c, lr) for c, lr, _ in rows], [(c, run.found_lr) for c, _, run in rows])
        )
        section.rows.append((name, str(len(rows)), law, schedule, online, committed, alone))
    return section
