"""What pilots for a hundredth of a run teach, alone and with another table's runs to lean on.

Pilots are bought as a user would: cells that the budget can bear, far apart, a star of five runs about the base's
optimum in each. The base is the other table, never the one that is predicted; its settings were not chosen on these.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.comparison.scoring import cells_of
from metaopt_hpo.scaling import Law, LawRefused, fit
from metaopt_hpo.scaling.base.population import Base
from metaopt_hpo.scaling.base.sources import base_of
from metaopt_hpo.scaling.fitting.cells import Cells
from metaopt_hpo.scaling.fitting.grid import CellGrid
from metaopt_hpo.scaling.fitting.pointfit import PointFit, point_fit
from metaopt_hpo.scaling.fitting.reading import from_table
from metaopt_hpo.trials.table import TrialTable
from studies import benchmarks
from studies.section import Section

BUDGETS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Pilots' cost in target runs."""

STAR = ((0.0, 0.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 0.8), (0.0, -0.8))
"""Offsets of a cell's pilots from the base's optimum there, ln lr and ln batch."""

SEEDS = 10


def borrowing_section(data: Path, *, seeds: int = SEEDS) -> Section:
    """Excess at the largest targets of each table, by pilot budget."""
    tables = {"OpenEuroLLM": benchmarks.openeurollm(data), "Step Law": benchmarks.steplaw(data)}
    section = Section(
        f"Pilots alone and with a base, {seeds} designs each: median (90 % quantile) excess, %",
        [
            "target, base",
            "pilots cost",
            "runs",
            "alone",
            "with the base",
            "loss's error, rms %",
            "coverage lr / loss",
        ],
    )
    for name, other in (("Step Law", "OpenEuroLLM"), ("OpenEuroLLM", "Step Law")):
        base = base_of(tables[other])
        fitted = point_fit(from_table(tables[other]))
        grids = cells_of(tables[name])
        largest = max(size for size, _ in grids)
        for target in sorted(c for c in grids if c[0] == largest)[-2:]:
            label = f"{name} {target[0] / 1e6:.0f} M × {target[1] / 1e9:.0f} B, {other}"
            for budget in BUDGETS:
                section.rows.append(
                    [label, *_row(tables[name], target, budget, base, fitted, seeds, grids[target])]
                )
    section.note = '"Alone" counts a refused law as its table\'s median run. Cost is in runs of the target.'
    return section


def leaning_section(data: Path) -> Section:
    """What a base changes where trials speak for themselves, and where it is unlike them; the base alone, too."""
    bases = {"oe": base_of(benchmarks.openeurollm(data)), "sl": base_of(benchmarks.steplaw(data))}
    centres = {
        "oe": point_fit(from_table(benchmarks.openeurollm(data))),
        "sl": point_fit(from_table(benchmarks.steplaw(data))),
    }
    section = Section(
        "Many trials with a base: mean excess, %",
        ["fit → predict", "runs", "alone", "with the base", "the base alone", "left out as unlike"],
    )
    for split in [*benchmarks.ordered_splits(data), *benchmarks.mup_widths_splits(data)]:
        other = "oe" if split.name.startswith("sl") else "sl"
        cells = cells_of(split.test)
        laws = [fit(split.train, allow_weak=True, draws=60), fit(split.train, base=bases[other], draws=60)]
        means = [f"{100 * np.mean([_excess(law, c, g) for c, g in cells.items()]):.3f}" for law in laws]
        centre = centres[other].centre
        alone = [g.excess(*(math.exp(v) for v in centre(*c))) for c, g in cells.items()]
        unlike = "yes" if any(w.code == "base-unlike" for w in laws[1].warnings) else "–"
        section.rows.append(
            [split.title, str(len(split.train)), *means, f"{100 * np.mean(alone):.3f}", unlike]
        )
    section.note = "The base of a table is the other one; that of the widths is Step Law's."
    return section


def _row(
    table: TrialTable,
    target: tuple[float, float],
    budget: float,
    base: Base,
    fitted: PointFit,
    seeds: int,
    grid: CellGrid,
) -> list[str]:
    cells = from_table(table)
    alone, leaning, errors, runs, spent = [], [], [], [], []
    inside: dict[str, list[bool]] = {"lr": [], "loss": []}
    for seed in range(seeds):
        rows, cost = pilots(cells, target, budget, fitted, np.random.default_rng(seed))
        trials = table.select(where=np.isin(np.arange(len(table)), cells.row[rows]))
        try:
            law: Law | None = fit(trials, allow_weak=True, draws=20)
        except LawRefused:
            law = None
        alone.append(_excess(law, target, grid))
        with_base = fit(trials, base=base, draws=100)
        leaning.append(_excess(with_base, target, grid))
        p = with_base.predict(*target)
        errors.append(math.log(p.loss.value / grid.best))
        inside["lr"].append(grid.best_lr in p.lr)
        inside["loss"].append(grid.best in p.loss)
        runs.append(rows.size)
        spent.append(cost)
    coverage = " / ".join(f"{np.mean(v):.0%}" for v in inside.values())
    rms = 100 * float(np.sqrt(np.mean(np.square(errors))))
    cost_text = f"{np.median(spent):.3f}"
    return [cost_text, f"{np.median(runs):.0f}", _text(alone), _text(leaning), f"{rms:.2f}", coverage]


def _excess(law: Law | None, target: tuple[float, float], grid: CellGrid) -> float:
    if law is None:
        return float(np.median(grid.loss)) / grid.best - 1.0
    p = law.predict(*target)
    return grid.excess(p.lr.value, p.batch.value)


def _text(values: list[float]) -> str:
    return f"{100 * np.median(values):.3f} ({100 * np.quantile(values, 0.9):.3f})"


def pilots(
    cells: Cells, target: tuple[float, float], budget: float, base: PointFit, rng: np.random.Generator
) -> tuple[NDArray[np.intp], float]:
    """Rows of `cells` that a budget buys, and their cost, both in runs of the target.

    Cells are drawn with probability proportional to their distance from those drawn before, among what the rest of the
    budget can bear; where it bears none, the cheapest cell gets three runs.
    """
    cost = cells.cell_size * cells.cell_tokens / (target[0] * target[1])
    place = np.column_stack([np.log(cells.cell_size), np.log(cells.cell_tokens)])
    used: list[int] = []
    rows: list[int] = []
    spent = 0.0
    while True:
        able = [j for j in range(cells.k) if j not in used and spent + cost[j] * len(STAR) <= budget]
        if not able:
            break
        away = np.array([min((np.abs(place[j] - place[u]).sum() for u in used), default=1.0) for j in able])
        j = int(rng.choice(able, p=away / away.sum()))
        used.append(j)
        rows += _star(cells, j, base, len(STAR), rng)
        spent += float(cost[j]) * len(STAR)
    if not used:
        j = int(cost.argmin())
        rows, spent = _star(cells, j, base, 3, rng), 3 * float(cost[j])
    return np.array(sorted(set(rows))), spent


def _star(cells: Cells, j: int, base: PointFit, count: int, rng: np.random.Generator) -> list[int]:
    """The runs of a cell that are nearest to a star about the base's optimum, each taken once."""
    x, y = base.centre(float(cells.cell_size[j]), float(cells.cell_tokens[j]))
    there = np.flatnonzero(cells.cell == j)
    shift = rng.uniform(-0.3, 0.3, 2)
    out: list[int] = []
    for u, v in STAR[:count]:
        distance = np.hypot(cells.x[there] - x - u - shift[0], cells.y[there] - y - v - shift[1])
        free = [int(r) for r in there[np.argsort(distance, kind="stable")] if int(r) not in out]
        out += free[:1]
    return out
