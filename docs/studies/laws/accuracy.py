"""Tables of how well laws predict: excess loss, coverage of intervals, widths, and when cautions are given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from metaopt_hpo.comparison.scoring import (
    cells_of,
    choose,
    copying,
    least_of_any_power_law,
    of_law,
    published,
    score,
)
from metaopt_hpo.scaling import Law, LawRefused, fit
from metaopt_hpo.scaling.cautions import WRONG
from metaopt_hpo.scaling.fitting.grid import CellGrid
from metaopt_hpo.scaling.fitting.pointfit import point_fit
from metaopt_hpo.scaling.fitting.reading import from_table
from metaopt_hpo.trials.table import TrialTable
from studies import benchmarks
from studies.benchmarks import BenchmarkMissing, Split
from studies.laws.learned import ResidualGP, run_dynamics
from studies.section import Section


def percent(values: Sequence[float]) -> str:
    """Mean (max) in percent."""
    return f"{100 * float(np.mean(values)):.3f} ({100 * float(np.max(values)):.3f})"


def excess_section(splits: Sequence[Split], laws: dict[str, Law]) -> Section:
    """Excess of every method on every split."""
    header = [
        "fit → predict (cells)",
        "law",
        "law, on the grid",
        "copy nearest cell",
        "Step Law",
        "DeepSeek",
        "median run",
        "fit to all",
        "least of any power law",
    ]
    section = Section("Excess loss at the predicted lr and batch, mean (max) %", header)
    for split in splits:
        cells = cells_of(split.test)
        both = TrialTable.concat([split.train, split.test])
        row = [
            f"{split.title} ({len(cells)})",
            percent(score(of_law(laws[split.name]), cells)),
            percent(choose(laws[split.name], cells)),
            percent(score(copying(split.train), cells)),
            percent(score(published("step-law"), cells)),
            percent(score(published("deepseek"), cells)),
            f"{100 * float(np.mean([np.median(g.loss) / g.best - 1 for g in cells.values()])):.2f}",
            percent(score(point_fit(from_table(both)).centre, cells)),
            percent(least_of_any_power_law(point_fit(from_table(both)), cells)),
        ]
        section.rows.append(row)
    section.note = (
        '"On the grid": the law chooses among the runs that were measured, as copying does. '
        "Losses between grid points are interpolated linearly, which costs any off-grid point about 0.05 %. "
        '"Fit to all" has seen the held-out cells. "Least of any power law" was searched for on the scores '
        "themselves, noise of the grids' best runs included: no fit reaches it. Noise floor: 0.08 %."
    )
    return section


def learned_section(splits: Sequence[Split]) -> Section:
    """The surface alone, with a Gaussian process on its residuals, and with the runs' dynamics as inputs of that."""
    header = ["fit → predict (cells)", "surface", "surface + process", "surface + process with dynamics"]
    section = Section("The learned alternative, excess loss, mean (max) %", header)
    for split in splits:
        cells, train = cells_of(split.test), from_table(split.train)
        dynamics = run_dynamics(split.train, train)
        methods = [point_fit(train).centre, ResidualGP().fit(train)]
        if dynamics is not None:
            methods.append(ResidualGP().fit(train, dynamics))
        row = [f"{split.title} ({len(cells)})", *(percent(score(m, cells)) for m in methods)]
        section.rows.append(row if dynamics is not None else [*row, "not recorded"])
    section.note = "The likeliest optimum in all columns, not the lr of least expected loss."
    return section


def coverage_section(splits: Sequence[Split], laws: dict[str, Law]) -> Section:
    """Share of held-out cells whose best run lies inside the 90 % interval; optima at a grid's edge left out."""
    header = ["split", "lr", "batch", "loss", "loss's error, mean (rms) %", "half-width of its interval, %"]
    section = Section("Coverage of 90 % intervals, and the predicted loss", header)
    pooled: dict[str, list[bool]] = {"lr": [], "batch": [], "loss": []}
    pooled_errors: list[float] = []
    for split in splits:
        inside: dict[str, list[bool]] = {"lr": [], "batch": [], "loss": []}
        errors, widths = [], []
        for cell, grid in cells_of(split.test).items():
            p = laws[split.name].predict(*cell)
            edge_lr, edge_batch = grid.at_edge()
            if not edge_lr:
                inside["lr"].append(grid.best_lr in p.lr)
            if not edge_batch:
                inside["batch"].append(grid.best_batch in p.batch)
            inside["loss"].append(grid.best in p.loss)
            errors.append(100.0 * math.log(p.loss.value / grid.best))
            widths.append(50.0 * math.log(p.loss.high / p.loss.low))
        for k, v in inside.items():
            pooled[k] += v
        pooled_errors += errors
        shares = (f"{np.mean(v):.0%} of {len(v)}" if v else "–" for v in inside.values())
        section.rows.append([split.title, *shares, _mean_and_rms(errors), f"{np.mean(widths):.1f}"])
    shares = (f"{np.mean(v):.1%} of {len(v)}" for v in pooled.values())
    section.rows.append(["all", *shares, _mean_and_rms(pooled_errors), ""])
    return section


def _mean_and_rms(errors: Sequence[float]) -> str:
    return f"{np.mean(errors):+.2f} ({np.sqrt(np.mean(np.square(errors))):.2f})"


def width_section(data: Path) -> Section:
    """muP widths and FCNet: single-batch and small discrete tables."""
    header = [
        "table",
        "law, excess %",
        "law, on the grid",
        "copy nearest width",
        "cautions",
        "with two widths",
    ]
    section = Section("Widths", header)
    notes = []
    for table in (benchmarks.mup_widths_splits, benchmarks.fcnet_splits):
        try:
            for split in table(data):
                cells = cells_of(split.test)
                law = fit(split.train, allow_weak=True)
                sizes = sorted(split.train.frame["size"].unique())
                methods = (score(of_law(law), cells), choose(law, cells), score(copying(split.train), cells))
                codes = ", ".join(doubts(law, cells)) or "–"
                row = [split.title, *(f"{100 * m[0]:.2f}" for m in methods), codes]
                section.rows.append([*row, _refusal(split.train.select(size=sizes[:2]))])
        except BenchmarkMissing as e:
            notes.append(str(e))
    section.note = " ".join([*notes, "FCNet knows only its grid: the second column counts there."])
    return section


WRONG_EXCESS = 5e-3
"""Mean excess from which a prediction counts as wrong: what the median run of a grid loses."""


def doubts(law: Law, cells: Mapping[tuple[float, float], CellGrid]) -> list[str]:
    """Which of `cautions.WRONG` a law gives for any of these cells."""
    codes = {w.code for cell in cells for w in law.predict(*cell).warnings}
    return [d for d in WRONG if d in codes]


def caution_section(data: Path) -> Section:
    """How often a law that was right, or wrong, said that it may be wrong, over every kind of table here."""
    counts = {right: dict.fromkeys((*WRONG, "any", "all"), 0) for right in (True, False)}
    splits: list[Split] = []
    notes = []
    for build in (
        benchmarks.ordered_splits,
        benchmarks.slices,
        benchmarks.live_splits,
        benchmarks.mup_widths_splits,
        benchmarks.fcnet_splits,
    ):
        try:
            splits += build(data)
        except BenchmarkMissing as e:
            notes.append(str(e))
    for split in splits:
        cells = cells_of(split.test)
        try:
            law = fit(split.train, allow_weak=True)
        except LawRefused as e:
            notes.append(f"{split.title}: refused ({e.code}).")
            continue
        discrete = split.name.startswith("fcnet")
        excess = float(np.mean(choose(law, cells) if discrete else score(of_law(law), cells)))
        given = doubts(law, cells)
        for code in (*given, "all", *(["any"] if given else [])):
            counts[excess <= WRONG_EXCESS][code] += 1
    section = Section(
        "Cautions given, by whether the law was right", ["law", "splits", *WRONG, "any of them"]
    )
    for right, label in ((True, f"excess ≤ {WRONG_EXCESS:.1%}"), (False, f"excess > {WRONG_EXCESS:.1%}")):
        n = counts[right]
        section.rows.append([label, str(n["all"]), *(str(n[c]) for c in (*WRONG, "any"))])
    section.note = " ".join(
        [
            "The nine splits, every number of tokens of both tables taken alone, `text-lm`, and the widths.",
            *notes,
        ]
    )
    return section


def _refusal(table: TrialTable) -> str:
    try:
        fit(table)
    except LawRefused as e:
        return f"refused ({e.code})"
    return "not refused"
