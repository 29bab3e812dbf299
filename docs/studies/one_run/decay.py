"""What to hold fixed of weight decay while the step size is found: `python -m studies.one_run.decay`.

Decoupled decay acts as α·λ a step, so that the time over which AdamW forgets, 1/(αλ) steps, moves as α is found. Three
ways: λ fixed (what the strategy does), the product λα fixed (decay a step, whatever α is), and the timescale fixed as
a fraction of the run. The cooldown lowers all three alike. Their strengths are equal at 2,000 steps and a rate of 8e-3,
where the last two are the same run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer

from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.optim import MetaOptimize
from metaopt_hpo.strategies import make
from studies import run as commands
from studies.one_run.kept import has, keep, read
from studies.one_run.length_jobs import job

KEPT = Path(__file__).parent / "decay.parquet"
KEY = ["job", "steps", "seed", "hold", "strength"]
JOBS = ("shortgru48", "shorttf48")
STEPS = (2000, 500)
FIRST_SEED = 750
HOLDS = ("λ", "λα", "timescale")
STRENGTHS = (0.025, 0.1, 0.4)
"""λ, or that of a run of `REFERENCE[0]` steps at the rate `REFERENCE[1]`."""

REFERENCE = (2000, 8e-3)


def train(name: str, steps: int, seed: int, hold: str, strength: float) -> dict[str, float]:
    """Train one run; its held-out loss and the rate found."""
    data = job(name)
    model = data.model(seed)
    run = make("metaoptimize", weight_decay=strength).build(model, steps)
    decayed = [g for g in run.optimizer.param_groups if g["weight_decay"] > 0]
    for step in range(steps):
        loss = data.loss(model, step, seed)
        loss.backward()
        for group in decayed:
            group["weight_decay"] = coefficient(run.optimizer, hold, strength, steps)
        run.step(loss.detach())
    model.eval()
    with torch.no_grad():
        held = float(data.held_out(model).mean())
    return {"held_out": held, "found": float(getattr(run, "found_lr", 0.0) or 0.0)}


def coefficient(optimizer: torch.optim.Optimizer, hold: str, strength: float, steps: int) -> float:
    """λ of the coming step."""
    if hold == "λ":
        return strength
    length, rate = REFERENCE
    product = strength * rate * (length / steps if hold == "timescale" else 1.0)
    # before the ramps, which multiply the decay too
    assert isinstance(optimizer, MetaOptimize)
    return product / float(optimizer.step_sizes().mean())


def study(
    out: Annotated[
        Path, typer.Option(help="Parquet file of the runs; finished ones are not repeated.")
    ] = KEPT,
    jobs: Annotated[str, typer.Option(help="Jobs, by comma.")] = ",".join(JOBS),
    steps: Annotated[str, typer.Option(help="Horizons, by comma.")] = ",".join(map(str, STEPS)),
    seeds: Annotated[int, typer.Option(help="Seeds of each cell.", min=1)] = 2,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """What to hold fixed of weight decay while the step size is found: λ, λα or the timescale.

    Example: python -m studies.one_run.decay --jobs shortgru48 --steps 500
    """
    torch.set_num_threads(1)
    cells = [
        (name, count, seed, hold, strength)
        for strength in sorted(STRENGTHS, key=lambda s: abs(np.log(s / 0.1)))
        for seed in range(FIRST_SEED, FIRST_SEED + seeds)
        for count in map(int, steps.split(","))
        for name in jobs.split(",")
        for hold in HOLDS
        if not (hold == "timescale" and count == REFERENCE[0])
    ]
    for cell in [] if report_only else cells:
        key: dict[str, Any] = dict(zip(KEY, cell, strict=True))
        if has(read(out, KEY), key):
            continue
        keep(out, key, found := train(*cell))
        typer.echo(f"{cell}: {found['held_out']:.4f} at {found['found']:.3g}", err=True)
    typer.echo(markdown(read(out, KEY)))


def markdown(table: pd.DataFrame) -> str:
    """A line a job, horizon and what is held: losses by strength, over the run as it comes (λ = 0.1), seed by seed."""
    same = table[(table.hold == "λα") & (table.steps == REFERENCE[0])].assign(hold="timescale")
    table = pd.concat([table, same], ignore_index=True)
    shown = [f"strength {s:g}" for s in STRENGTHS]
    lines = []
    for (name, steps), rows in table.groupby(["job", "steps"], sort=False):
        usual = rows[(rows.hold == "λ") & (rows.strength == 0.1)].set_index("seed").held_out
        for hold in HOLDS:
            of = rows[rows.hold == hold]
            if of.empty:
                continue
            cells = []
            for strength in STRENGTHS:
                these = of[of.strength == strength].set_index("seed").held_out
                both = these.index.intersection(usual.index)
                ratios = 100 * (these[both] / usual[both] - 1)
                cells.append(", ".join(f"{r:+.1f} %" for r in ratios) if len(both) else "–")
            found = of[of.strength == 0.1].found
            rate = f"{np.exp(np.log(found).mean()):.2g}" if len(found) else "–"
            lines.append((name, steps, hold, of.seed.nunique(), *cells, rate))
    return markdown_table(["job", "steps", "held", "seeds", *shown, "rate found at 0.1"], lines)


if __name__ == "__main__":
    commands.run(study)
