"""One run against a few learning rates, the same over many seeds: `python -m studies.one_run.fixed_lrs`.

The digits MLP takes seconds and its held-out loss differs by a fifth from seed to seed. A search on one seed picks what
was lucky there; a learning rate that is best in the mean over many seeds is what a search can hope for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

from metaopt_hpo.atomic import replacing
from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.strategies import LRStrategy, make
from studies import run as commands
from studies.one_run.against_tpe import JOBS, OURS, difference, train
from studies.one_run.length_jobs import job

KEPT = Path(__file__).parent / "fixed_lrs.parquet"
JOB = "mlp64"
SEEDS = range(600, 620)
"""Others than those of the comparison with a search."""

SETTINGS: dict[str, tuple[float, ...]] = {
    "linear": (1.2e-2, 1.7e-2, 2.4e-2, 3.4e-2, 4.8e-2, 6.8e-2),
    "wsd": (1.7e-2, 2.4e-2, 3.4e-2),
}


def settings() -> dict[str, LRStrategy]:
    """Name → strategy, ours first."""
    fixed = {f"{name} {lr:g}": make(name, lr=lr) for name, lrs in SETTINGS.items() for lr in lrs}
    return {OURS: make(OURS), **fixed}


def study(
    out: Annotated[
        Path, typer.Option(help="Parquet file of the runs; finished ones are not repeated.")
    ] = KEPT,
    seeds: Annotated[int, typer.Option(help="At most this many seeds.", min=1)] = len(SEEDS),
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """One metaoptimize run against fixed learning rates over many seeds.

    Example: python -m studies.one_run.fixed_lrs --seeds 5
    """
    torch.set_num_threads(1)
    data, steps = job(JOB), JOBS[JOB][0]
    table = pd.read_parquet(out) if out.exists() else pd.DataFrame(columns=["seed", "setting"])
    for seed in SEEDS[:seeds]:
        for name, strategy in settings().items():
            if report_only or ((table.seed == seed) & (table.setting == name)).any():
                continue
            row = pd.DataFrame([{"seed": seed, "setting": name, **train(data, strategy, steps, seed)}])
            table = pd.concat([table, row], ignore_index=True) if len(table) else row
            with replacing(out) as path:
                table.to_parquet(path)
    typer.echo(markdown(table))


def markdown(table: pd.DataFrame) -> str:
    """A line a setting: mean losses, and our paired difference from it in per cent of its mean."""
    held, training = (
        table.pivot(index="seed", columns="setting", values=v) for v in ("held_out", "training")
    )
    lines = []
    for name in settings():
        theirs, ours = held[name].dropna(), held[OURS]
        paired = "–" if name == OURS else difference(ours.loc[theirs.index], theirs)
        means = (f"{theirs.mean():.4f}", f"{theirs.median():.4f}", f"{training[name].mean():.1e}")
        lines.append((name, len(theirs), *means, paired))
    linear = held[[name for name in held if str(name).startswith("linear")]]
    head = ["setting", "seeds", "held-out, mean", "median", "training, mean", "one run against it"]
    return (
        f"{markdown_table(head, lines)}\n\n"
        f"Best linear setting of each seed, chosen by the loss it is judged on: {linear.min(axis=1).mean():.4f}; "
        f"the one that is best in the mean: {linear.mean().min():.4f}."
    )


if __name__ == "__main__":
    commands.run(study)
