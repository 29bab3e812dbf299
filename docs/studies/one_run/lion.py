"""How fast the search over Lion should be, and what its correction is: `python -m studies.one_run.lion`.

`strategies.kinds.slowness` multiplies limit and meta step over a rule that takes only signs, by √(10 / memory), 0.32
over Lion; `balance.PRIOR_SIGN` is the correction there. For jobs outside the study WSD over Lion gives the best rate
(a parabola through the best three, a factor of two apart), and runs are followed until they commit, at several speeds.
The best speed is that of the smallest scatter of best over adapted rates, and the correction their geometric mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

from metaopt_hpo.optim.rules import Lion
from metaopt_hpo.strategies import make
from metaopt_hpo.strategies.kinds import slowness
from metaopt_hpo.strategies.metaoptimize import MetaOptimizeStrategy
from studies import run as commands
from studies.one_run.corrections import KEY, SCHEDULE, adapted, best_rate, tune
from studies.one_run.kept import has, keep, read, rows_of

KEPT = Path(__file__).parent / "lion.parquet"
JOBS = ("teach32", "shortgru32", "shorttf32", "shortgru96")
STEPS = 2000
SEED = 800
BEGIN = (5e-4, 1e-3, 2e-3)
SPEEDS = (1.0, 0.56, 0.32, 0.18, 0.1)
"""Factors on limit and meta step."""


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
    typer.echo(markdown(read(out, KEY)))


def markdown(table: pd.DataFrame) -> str:
    """Best over adapted rate, a line a speed and a column a job, with mean and scatter."""
    best = {
        str(job): best_rate(rows_of(rows, method=SCHEDULE)) for job, rows in table.groupby("job", sort=False)
    }
    heads = [f"{job} ({rate:.2g})" for job, rate in best.items() if rate is not None]
    lines = [
        f"| speed | {' | '.join(heads)} | geometric mean | sd of ln |",
        "|---|" + "---|" * (len(heads) + 2),
    ]
    for speed in SPEEDS:
        ratios = []
        for job, rate in best.items():
            own = rows_of(table, job=job, method=f"speed {speed:g}")
            if rate is not None and not own.empty:
                ratios.append(rate / float(own.found.iloc[0]))
        if len(ratios) < max(2, len(heads)):
            continue
        logs = np.log(ratios)
        cells = " | ".join(f"{r:.2f}" for r in ratios)
        lines.append(f"| {speed:g} | {cells} | {np.exp(logs.mean()):.2f} | {logs.std(ddof=1):.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    commands.run(study)
