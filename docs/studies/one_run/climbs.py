"""How far a step size still climbs where a run would commit to it: `python -m studies.one_run.climbs`.

`strategies.plateau.CLIMBING` puts the commitment off where the step size lies that far above its geometric mean over
the second half of the time until then. For the jobs of `corrections`, and for a small network that rests on a plateau
before it learns the products of its inputs, a run is followed until it would commit, at several horizons.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from torch import Tensor, nn

from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.optim import AdamW, MetaOptimize
from metaopt_hpo.strategies import make
from metaopt_hpo.strategies.correction import find_fraction, warmup_fraction
from metaopt_hpo.strategies.plateau import CLIMBING, FALL
from metaopt_hpo.strategies.schedules import warmup_factor
from studies import run as commands
from studies.one_run import corrections
from studies.one_run.kept import has, keep, read, rows_of
from studies.one_run.length_jobs import job

KEPT = Path(__file__).parent / "climbs.parquet"
KEY = ["job", "steps", "seed"]
PRODUCTS = "products"
STEPS = (250, 500, 700, 1000, 1400, 2000)
PLATEAU_STEPS = (250, 500, 700, 1000, 1200, 1400, 1700, 2000)
"""Horizons of the network with a plateau: what it shows depends on whether it leaves it where the run would commit."""

SEED = corrections.SEED
PLATEAU_SEEDS = 3


class Products:
    """A small tanh network that learns x₁x₅ + x₂x₆ + x₃x₇ + x₄x₈ from 2,048 inputs, batches of 64."""

    def __init__(self) -> None:
        self.x = torch.randn(2048, 8, generator=torch.Generator().manual_seed(0))
        self.y = (self.x[:, :4] * self.x[:, 4:]).sum(1, keepdim=True)

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))

    def loss(self, model: nn.Module, step: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed((seed + 1) * 10_000_019 + step)
        rows = torch.randint(len(self.x), (64,), generator=generator)
        loss: Tensor = (model(self.x[rows]) - self.y[rows]).square().mean()
        return loss


def risen(name: str, steps: int, seed: int) -> dict[str, float]:
    """The step size where a run would commit, over its mean until then, and the loss there over the first."""
    data = Products() if name == PRODUCTS else job(name)
    model = data.model(seed)
    run = make("metaoptimize").build(model, steps)
    assert isinstance(run.optimizer, MetaOptimize)
    commit = round(find_fraction(steps, AdamW()) * steps)
    ramp = round(warmup_fraction(AdamW()) * steps)
    logs: list[float] = []
    losses: list[float] = []
    for step in range(commit):
        loss = data.loss(model, step, seed)
        loss.backward()
        logs.append(math.log(float(run.optimizer.step_sizes()[0]) * warmup_factor(step, ramp)))
        run.step(loss.detach())
        losses.append(float(loss.detach()))
    last = math.log(float(run.optimizer.step_sizes()[0]) * warmup_factor(commit, ramp))
    part = max(3, commit // 5)
    left = np.mean(losses[-part:]) / np.mean(losses[: max(3, commit // 20)])
    return {
        "held_out": math.nan,
        "risen": math.exp(last - np.mean(logs[commit - commit // 2 :])),
        "left": float(left),
    }


def study(
    out: Annotated[
        Path, typer.Option(help="Parquet file of the runs; finished ones are not repeated.")
    ] = KEPT,
    jobs: Annotated[str, typer.Option(help="Jobs, by comma.")] = ",".join((PRODUCTS, *corrections.JOBS)),
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """How far a step size still climbs where a run would commit to it.

    Example: python -m studies.one_run.climbs --jobs products
    """
    torch.set_num_threads(1)
    cells = [
        (name, count, seed)
        for name in jobs.split(",")
        for count in (PLATEAU_STEPS if name == PRODUCTS else STEPS)
        for seed in range(SEED, SEED + (PLATEAU_SEEDS if name == PRODUCTS else 1))
    ]
    for cell in [] if report_only else cells:
        key = dict(zip(KEY, cell, strict=True))
        if not has(read(out, KEY), key):
            keep(out, key, found := risen(*cell))
            typer.echo(f"{cell}: {found['risen']:.2f}, loss at {found['left']:.2f} of the first", err=True)
    typer.echo(markdown(read(out, KEY)))


def markdown(table: pd.DataFrame) -> str:
    """A line a job, its rise by horizon; then the largest; then the network with a plateau, a line a horizon."""
    plain = table[table.job != PRODUCTS]
    lines = []
    for name, rows in plain.groupby("job", sort=False):
        by = rows.set_index("steps").risen
        lines.append((name, *(f"{by[s]:.2f}" if s in by else "–" for s in STEPS)))
    if len(plain):
        lines.append(("largest", *(f"{rows_of(plain, steps=s).risen.max():.2f}" for s in STEPS)))
    of = []
    for steps, rows in rows_of(table, job=PRODUCTS).groupby("steps"):
        cells = [", ".join(f"{x:.2f}" for x in rows[c]) for c in ("risen", "left")]
        climbs = rows.risen > CLIMBING
        counts = (climbs, climbs & (rows.left < 1 - FALL))
        of.append((steps, *cells, *(f"{c.sum()} of {len(rows)}" for c in counts)))
    head = ["step size over its mean, by steps", *map(str, STEPS)]
    plateau_head = [
        f"{PRODUCTS}, steps", "step size over its mean", "loss over the first", f"climb by more than {CLIMBING:g}",
        f"of these with the loss down by {FALL:.0%}",
    ]  # fmt: skip
    return f"{markdown_table(head, lines)}\n\n{markdown_table(plateau_head, of)}"


if __name__ == "__main__":
    commands.run(study)
