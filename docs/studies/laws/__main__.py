"""Measure laws on published tables: `python -m studies.laws --data DIR`.

Prints the tables of README.md beside this: excess loss at the predicted lr and batch, coverage of intervals, the
learned alternative on the same splits, cautions, replay, and speed. One method with one set of settings throughout.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from metaopt_hpo.atomic import write_text
from metaopt_hpo.comparison.replay import replay
from metaopt_hpo.comparison.table_objective import TableObjective
from metaopt_hpo.errors import MetaOptError, MetaOptWarning
from metaopt_hpo.scaling import fit
from studies import benchmarks
from studies.laws.accuracy import (
    caution_section,
    coverage_section,
    excess_section,
    learned_section,
    width_section,
)
from studies.laws.borrowing import borrowing_section, leaning_section
from studies.laws.doubt import doubt_section
from studies.laws.floor_accuracy import floor_section, growth_section
from studies.laws.schedules import schedule_section
from studies.section import Section


def replay_section(data: Path, seeds: int, methods: Sequence[str]) -> Section:
    """Law-guided search against others on Step Law's largest cells."""
    objective = TableObjective(benchmarks.steplaw(data))
    pilots = [c for c in objective.cells if c[0] < 2.2e8 and c[1] < 8.5e9]
    section = Section(
        f"Replay: target-run equivalents to come within 0.1 / 0.25 / 0.5 % of the best, {seeds} seeds",
        ["target", "method", "median", "mean"],
    )
    size = max(objective.sizes)
    for tokens in (5e10, 1e11):
        result = replay(objective, (size, tokens), pilots=pilots, methods=methods, seeds=seeds)
        summary = result.summary()
        label = f"{size / 1e6:.0f} M × {tokens / 1e9:.0f} B"
        section.rows.append([label, "whole grid", str(result.grid_size), str(result.grid_size)])
        for method, g in summary.groupby("method", sort=False):
            section.rows.append(
                [label, str(method), *(" / ".join(f"{v:.1f}" for v in g[k]) for k in ("median", "mean"))]
            )
    section.note = (
        "Pilots: cells N ≤ 215 M, D ≤ 8 B, their cost included. A method that did not get there within 150 target "
        'runs counts as 150. "grid" walks the grid in random order until it is lucky.'
    )
    return section


def speed_section(data: Path) -> Section:
    """Medians of wall-clock and processor times on this machine."""
    table = benchmarks.steplaw(data)
    section = Section("Speed", ["what", "wall", "CPU"])
    law = fit(table)
    cell = (4.3e8, 1e11)
    timings: list[tuple[str, Callable[[], Any], int, float, str]] = [
        (f"fit of {law.trials} trials with intervals", lambda: fit(table), 3, 1.0, "s"),
        ("refit after one more trial", lambda: law.refit(table), 5, 1e3, "ms"),
        (
            "forecast, new cell",
            _fresh(lambda n: law.forecast(size=n, tokens=1e11, lr=1e-3, batch=1e6)),
            200,
            1e3,
            "ms",
        ),
        ("predict", lambda: law.predict(*cell), 200, 1e3, "ms"),
        (
            "verdict from a cached law",
            lambda: law.verdict(size=cell[0], tokens=cell[1], lr=1e-3, batch=1e6, incumbent=2.3),
            2000,
            1e6,
            "µs",
        ),
    ]
    for label, call, count, factor, unit in timings:
        times = np.array([_time(call) for _ in range(count)])
        wall, cpu = factor * np.median(times, axis=0)
        section.rows.append([label, f"{wall:.3g} {unit}", f"{cpu:.3g} {unit}"])
    section.note = "On a busy machine the wall-clock counts others' work too; CPU time does not."
    return section


def _time(call: Callable[[], Any]) -> tuple[float, float]:
    """(wall-clock, processor) seconds of one call."""
    begin = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


def _fresh(call: Callable[[float], Any]) -> Callable[[], Any]:
    sizes = iter(np.linspace(1e8, 1e9, 100_000))
    return lambda: call(float(next(sizes)))


app = typer.Typer(add_completion=False)


@app.command()
def main(
    data: Annotated[
        Path, typer.Option(help="Folder that holds the tables (see docs/studies/laws/README.md).")
    ],
    seeds: Annotated[int, typer.Option(help="Seeds of each replayed method.")] = 30,
    methods: Annotated[
        str, typer.Option(help="Replayed methods, comma-separated.")
    ] = "law,tpe,gp,random,asha,hyperband,grid",
    learned: Annotated[bool, typer.Option(help="Also measure the Gaussian process on residuals.")] = True,
    out: Annotated[Path | None, typer.Option(help="Also write the sections here, as JSON.")] = None,
) -> None:
    """Regenerate the tables of docs/studies/laws/README.md."""
    warnings.simplefilter("ignore", MetaOptWarning)
    warnings.filterwarnings("ignore", message=".*experimental.*")
    try:
        splits = benchmarks.ordered_splits(data)
        laws = {s.name: fit(s.train, allow_weak=True) for s in splits}
        builders: list[Callable[[], Section]] = [
            lambda: excess_section(splits, laws),
            lambda: coverage_section(splits, laws),
            lambda: borrowing_section(data),
            lambda: leaning_section(data),
            lambda: doubt_section(data),
            lambda: floor_section(data),
            lambda: growth_section(data),
            *([lambda: learned_section([*splits, *benchmarks.live_splits()])] if learned else []),
            lambda: schedule_section(data),
            lambda: width_section(data),
            lambda: caution_section(data),
            lambda: speed_section(data),
            lambda: replay_section(data, seeds, methods.split(",")),
        ]
        sections = []
        for build in builders:
            sections.append(build())
            typer.echo(sections[-1].markdown() + "\n")
    except MetaOptError as e:
        typer.echo(f"error: {e}", err=True)
        raise typer.Exit(2) from e
    if out is not None:
        write_text(out, json.dumps([s.__dict__ for s in sections], ensure_ascii=False, indent=1))


if __name__ == "__main__":
    app()
