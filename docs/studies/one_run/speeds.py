"""How fast step sizes of layers part from the common one: `python -m studies.one_run.speeds`.

`strategies.shared_meta.SharedAdam` lets every block deviate at a fraction of the common speed. Here that fraction is
varied on jobs outside the comparisons, two of fine-tuning and two from scratch, beside one step size for all on the
same weights and batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.optim.rules import Rule
from metaopt_hpo.strategies import make
from metaopt_hpo.strategies.metaoptimize import MetaOptimizeStrategy
from metaopt_hpo.strategies.shared_meta import SharedAdam
from studies import run as commands
from studies.one_run import fine_tuning_jobs, length_jobs
from studies.one_run.kept import has, keep, mean_over_jobs, read, rows_of
from studies.one_run.lengths import train

KEPT = Path(__file__).parent / "speeds.parquet"
KEY = ["job", "steps", "seed", "speed"]
JOBS = {"prose-shorttf16": 500, "prose-shortgru32": 500, "shortgru32": 2000, "shorttf16": 2000}
"""Job → steps."""

FIRST_SEED = 810
SPEEDS = (0.1, 0.3, 1.0)
TOGETHER = 0.0
"""One step size for all."""


@dataclass(frozen=True, kw_only=True)
class AtSpeed(MetaOptimizeStrategy):
    """The strategy with a step size a layer, whose deviations have this speed."""

    speed: float
    blocks: str = "layer"

    def meta_rule(self) -> str | Rule:
        return SharedAdam(betas=self.meta_betas, speed=self.speed)


def study(
    out: Annotated[
        Path, typer.Option(help="Parquet file of the runs; finished ones are not repeated.")
    ] = KEPT,
    jobs: Annotated[str, typer.Option(help="Jobs, by comma.")] = ",".join(JOBS),
    seeds: Annotated[int, typer.Option(help="Seeds of each job.", min=1)] = 1,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """How fast step sizes of layers part from the common one, on jobs outside the comparisons.

    Example: python -m studies.one_run.speeds --jobs shortgru32
    """
    torch.set_num_threads(1)
    for name in [] if report_only else jobs.split(","):
        data = (fine_tuning_jobs if name.startswith("prose") else length_jobs).job(name)
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            for speed in (TOGETHER, *SPEEDS):
                key = {"job": name, "steps": JOBS[name], "seed": seed, "speed": speed}
                if has(read(out, KEY), key):
                    continue
                strategy = AtSpeed(speed=speed) if speed else make("metaoptimize")
                keep(out, key, found := train(data, strategy, JOBS[name], seed))
                typer.echo(f"{list(key.values())}: {found['held_out']:.4f}", err=True)
    typer.echo(markdown(read(out, KEY)))


def markdown(table: pd.DataFrame) -> str:
    """A line a speed: per cent over one step size for all, on each job and in the mean."""
    together = rows_of(table, speed=TOGETHER).set_index(["job", "seed"]).held_out
    jobs = list(dict.fromkeys(table.job))
    lines = []
    for speed in SPEEDS:
        runs = rows_of(table, speed=speed).set_index(["job", "seed"])
        excess = (100 * (runs.held_out / together.reindex(runs.index) - 1)).groupby("job").mean().dropna()
        spread = runs.spread.groupby("job").mean()
        cells = [f"{excess[j]:+.2f} %, {spread[j]:.1f}" if j in excess.index else "–" for j in jobs]
        lines.append((f"{speed:g}", *cells, mean_over_jobs(excess, digits=2)))
    seeds = table.groupby("job").seed.nunique()
    heads = [f"{j}, {seeds[j]} seed{'s' if seeds[j] > 1 else ''}" for j in jobs]
    return markdown_table(["speed", *heads, "mean (90 % interval over jobs)"], lines)


if __name__ == "__main__":
    commands.run(study)
