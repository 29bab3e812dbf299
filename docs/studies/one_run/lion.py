"""How fast the search over Lion should be, and what its correction is: `python -m studies.one_run.lion`.

`strategies.kinds.slowness` multiplies limit and meta step over a rule that takes only signs, by √(10 / memory), 0.32
over Lion; `correction.PRIOR` times `correction.SIGN` is the correction there. For jobs outside the study WSD over Lion
gives the best rate (a parabola through the best three, a factor of two apart), and runs are followed until they commit,
at several speeds. What a speed and a correction lose is read off the schedules' losses at adapted rate times
correction: that parabola near the best rate, straight lines in ln lr beyond. The best pair is that of the smallest mean
over jobs.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer

from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.optim.rules import Lion
from metaopt_hpo.strategies import make
from metaopt_hpo.strategies.correction import PRIOR, SIGN
from metaopt_hpo.strategies.kinds import slowness
from metaopt_hpo.strategies.metaoptimize import MetaOptimizeStrategy
from studies import run as commands
from studies.one_run.corrections import KEY, SCHEDULE, adapted, tune
from studies.one_run.kept import best_rate, has, keep, read, rows_of
from studies.one_run.length_jobs import job
from studies.one_run.lengths import train

KEPT = Path(__file__).parent / "lion.parquet"
JOBS = ("teach32", "shortgru32", "shorttf32", "shortgru96", "teach128", "shorttf64")
STEPS, SHORT = 2000, 500
SEED = 800
BEGIN = (5e-4, 1e-3, 2e-3)
USED = PRIOR * SIGN
WHOLE: tuple[dict[str, float], ...] = (
    {"warmup": 0.05, "correction": 2.8},
    {"warmup": 0.05, "correction": 2.0},
    {"warmup": 0.05, "correction": 1.4},
    {"warmup": 0.05, "correction": 1.1},
    {"warmup": 0.1, "correction": 1.4},
    {"warmup": 0.1, "correction": 1.1},
)
"""Options of whole runs, whose losses are compared with the schedules'."""

SHORT_WHOLE: tuple[dict[str, float], ...] = tuple({"correction": c} for c in (2.8, 2.0, 1.4, 1.0))
"""The same of runs of `SHORT` steps."""

SPEEDS = (1.0, 0.56, 0.32, 0.18, 0.1)
"""Factors on limit and meta step."""

CORRECTIONS = tuple(float(c) for c in np.geomspace(0.5, 4.0, 61))
"""From which the best is chosen for each speed."""


def at_speed(speed: float, steps: int) -> MetaOptimizeStrategy:
    """The strategy over Lion with limit and meta step at this factor of AdamW's, and no correction."""
    usual = MetaOptimizeStrategy()
    own = speed / slowness(Lion())  # the run multiplies the limit by it
    limit = (usual.limit or 0.0) * own
    strategy = make(
        "metaoptimize",
        base="lion",
        correction=1.0,
        limit=limit,
        meta_lr=speed * usual.horizon_meta_lr(steps),
    )
    assert isinstance(strategy, MetaOptimizeStrategy)
    return strategy


def study(
    out: Annotated[
        Path, typer.Option(help="Parquet file of the runs; finished ones are not repeated.")
    ] = KEPT,
    jobs: Annotated[str, typer.Option(help="Jobs, by comma.")] = ",".join(JOBS),
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """How fast the search over Lion should be, on jobs outside the study.

    Example: python -m studies.one_run.lion --jobs teach32
    """
    torch.set_num_threads(1)
    for name in [] if report_only else jobs.split(","):
        key = {"job": name, "steps": STEPS, "seed": SEED}
        tune(out, key, BEGIN, base="lion")
        for speed in SPEEDS:
            row = key | {"method": f"speed {speed:g}", "lr": 0.0}
            if not has(read(out, KEY), row):
                keep(out, row, adapted(name, at_speed(speed, STEPS), STEPS, SEED))
        keep_whole(out, key, "lion", WHOLE)
        short = key | {"steps": SHORT}
        tune(out, short, BEGIN, base="lion")
        keep_whole(out, short, "lion", SHORT_WHOLE)
    typer.echo(markdown(read(out, KEY)))


def keep_whole(out: Path, key: dict[str, Any], base: str, choices: Iterable[dict[str, float]]) -> None:
    """Train a whole run over a base rule with each of these options, and keep what is not there yet."""
    for options in choices:
        row = key | {"method": _whole(options), "lr": 0.0}
        if not has(read(out, KEY), row):
            strategy = make("metaoptimize", base=base, **options)
            run = train(job(key["job"]), strategy, key["steps"], key["seed"])
            keep(out, row, {"held_out": run["held_out"], "found": run["step_size"]})


def _whole(options: dict[str, float]) -> str:
    return ", ".join(f"{k} {v:g}" for k, v in options.items())


def tuned(table: pd.DataFrame) -> tuple[dict[str, pd.DataFrame], dict[str, float]]:
    """Job → its schedules; job → the best rate, where one is told."""
    schedules = {str(job): rows_of(rows, method=SCHEDULE) for job, rows in table.groupby("job", sort=False)}
    return schedules, {job: r for job, rows in schedules.items() if (r := best_rate(rows)) is not None}


def excess(schedules: pd.DataFrame, rate: float) -> float:
    """Loss at a rate over the smallest, both read off WSD runs; in percent."""
    rows = schedules.sort_values("lr")
    x, y = np.log(rows.lr.to_numpy(float)), np.log(rows.held_out.to_numpy(float))
    i = min(max(int(y.argmin()), 1), len(y) - 2)
    parabola = np.polyfit(x[i - 1 : i + 2], y[i - 1 : i + 2], 2)
    near = x[i - 1] <= np.log(rate) <= x[i + 1]
    loss = np.polyval(parabola, np.log(rate)) if near else np.interp(np.log(rate), x, y)
    lowest = np.polyval(parabola, -parabola[1] / (2 * parabola[0]))
    return 100 * float(np.expm1(loss - lowest))


def markdown(table: pd.DataFrame) -> str:
    """Best over adapted rate, a line a speed and a column a job; then whole runs, long and short."""
    short, table = rows_of(table, steps=SHORT), rows_of(table, steps=STEPS)
    schedules, best = tuned(table)
    lines = []
    for speed in SPEEDS:
        own = rows_of(table, method=f"speed {speed:g}").set_index("job").found
        if any(job not in own.index for job in best) or len(best) < 2:
            continue
        found = {job: float(own[job]) for job in best}
        ratios = [best[job] / found[job] for job in best]
        lost = {
            c: float(np.mean([excess(schedules[job], c * found[job]) for job in best]))
            for c in (*CORRECTIONS, USED)
        }
        right = min(lost, key=lambda c: lost[c])
        spread = f"{np.log(ratios).std(ddof=1):.2f}"
        losses = [f"{lost[c]:.1f} %" for c in (right, USED)]
        lines.append((f"{speed:g}", *(f"{r:.2f}" for r in ratios), spread, f"{right:.2f}", *losses))
    head = ["speed", *_named(best), "sd of ln", "best correction", "loses in the mean", f"with {USED:g}"]
    tables = (
        markdown_table(head, lines),
        whole_table(table, schedules, best, WHOLE),
        whole_table(short, *tuned(short), SHORT_WHOLE, f"whole runs of {SHORT} steps"),
    )
    return "\n\n".join(tables)


def whole_table(
    table: pd.DataFrame,
    schedules: dict[str, pd.DataFrame],
    best: dict[str, float],
    choices: Iterable[dict[str, float]],
    title: str = "whole runs",
) -> str:
    """Excess of whole runs over the best schedule: a line a choice of options, a column a job."""
    lines = []
    for options in choices:
        rows = rows_of(table, method=_whole(options)).set_index("job")
        if not set(best) <= set(rows.index):
            continue
        over = [100 * (rows.held_out[job] / schedules[job].held_out.min() - 1) for job in best]
        cells = [f"{o:+.1f} % at {rows.found[job]:.2g}" for o, job in zip(over, best, strict=True)]
        lines.append((_whole(options), *cells, f"{np.mean(over):+.1f} %"))
    return markdown_table([f"{title} over the best schedule", *_named(best), "mean"], lines)


def _named(best: dict[str, float]) -> list[str]:
    return [f"{job} ({rate:.2g})" for job, rate in best.items()]


if __name__ == "__main__":
    commands.run(study)
