"""What the adapted step size should be multiplied with, by job and length: `python -m studies.one_run.corrections`.

For each job and horizon WSD is trained at rates a factor of two apart until the best lies inside, and a parabola
through the best three gives the best rate. `metaoptimize` runs are followed until they commit, at their own choice and
at a fifth of the run. The best rate over what a run adapted to is the correction that would have been right:
`strategies.balance` takes its priors for early commitment from here. No other study has these jobs and seeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer

from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.strategies import LRStrategy, make
from studies import run as commands
from studies.one_run.kept import best_rate, has, keep, read, rows_of
from studies.one_run.length_jobs import job
from studies.one_run.lengths import train

KEPT = Path(__file__).parent / "corrections.parquet"
KEY = ["job", "steps", "seed", "method", "lr"]
JOBS = ("teach32", "shortgru32", "shorttf16", "shortgru96", "shorttf64", "tf16", "teach128", "tf48")
"""Those with `res` need METAOPT_HPO_DATA, and are asked for by name."""

STEPS = (1000, 500)
SEED = 800
BEGIN = (4e-3, 8e-3, 1.6e-2)
MOST = 9
"""Rates at most."""

SCHEDULE = "wsd"
ADAPTED = {"adapted": None, "adapted for a fifth": 0.2}
"""`find` of the runs that adapt; None is their own choice."""


def adapted(name: str, strategy: LRStrategy, steps: int, seed: int) -> dict[str, float]:
    """What a run commits to before any correction, and when; it is followed no further."""
    data = job(name)
    model = data.model(seed)
    run = strategy.build(model, steps)
    while (found := getattr(run, "found_lr", None)) is None:
        loss = data.loss(model, run.steps_taken, seed)
        loss.backward()
        run.step(loss.detach())
    return {"held_out": float("nan"), "found": float(found), "commit": float(run.steps_taken)}


def study(
    out: Annotated[
        Path, typer.Option(help="Parquet file of the runs; finished ones are not repeated.")
    ] = KEPT,
    jobs: Annotated[str, typer.Option(help="Jobs, by comma.")] = ",".join(JOBS),
    steps: Annotated[str, typer.Option(help="Horizons, by comma.")] = ",".join(map(str, STEPS)),
    again: Annotated[bool, typer.Option("--again", help="Repeat the adapting runs that are kept.")] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """What the adapted step size should have been multiplied with, by job and length.

    Example: python -m studies.one_run.corrections --jobs teach32 --steps 500
    """
    torch.set_num_threads(1)
    for count in [] if report_only else map(int, steps.split(",")):
        for name in jobs.split(","):
            key = {"job": name, "steps": count, "seed": SEED}
            tune(out, key, BEGIN)
            for method, find in ADAPTED.items():
                own = key | {"method": method, "lr": 0.0}
                if again or not has(read(out, KEY), own):
                    keep(
                        out, own, adapted(name, make("metaoptimize", correction=1.0, find=find), count, SEED)
                    )
    typer.echo(markdown(read(out, KEY)))


def tune(out: Path, key: dict[str, Any], begin: tuple[float, ...], **options: Any) -> None:
    """WSD at the first rates, then at half or twice the last one until the best lies inside.

    Args:
        out: file of the runs.
        key: job, steps and seed.
        begin: the first rates, a factor of two apart.
        options: of the schedule.
    """
    for _ in range(MOST):
        tried = rows_of(read(out, KEY), **key, method=SCHEDULE).sort_values("lr", ignore_index=True)
        missing = [r for r in begin if r not in set(tried.lr)]
        if not missing:
            if best_rate(tried) is not None:
                return
            low = tried.held_out.fillna(float("inf")).idxmin() == 0
            missing = [float(tried.lr.min() / 2 if low else tried.lr.max() * 2)]
        row = key | {"method": SCHEDULE, "lr": missing[0]}
        schedule = make(SCHEDULE, lr=missing[0], **options)
        found = train(job(key["job"]), schedule, key["steps"], key["seed"])
        keep(out, row, {"held_out": found["held_out"]})
        typer.echo(f"{key['job']} {key['steps']} {missing[0]:g}: {found['held_out']:.4f}", err=True)


def right(table: pd.DataFrame) -> pd.DataFrame:
    """A row a job and horizon: best rate, where the run committed, and the right correction there and at a fifth."""
    out = []
    for (name, steps, seed), rows in table.groupby(["job", "steps", "seed"], sort=False):
        best = best_rate(rows_of(rows, method=SCHEDULE))
        own, fifth = (rows_of(rows, method=m) for m in ADAPTED)
        if best is None or own.empty or fifth.empty:
            continue
        found, later = float(own.found.iloc[0]), float(fifth.found.iloc[0])
        part = float(own.commit.iloc[0]) / float(str(steps))
        out.append([name, steps, seed, best, part, found, best / found, best / later])
    columns = ["job", "steps", "seed", "best", "part", "adapted", "ratio", "fifth"]
    return pd.DataFrame(out, columns=columns)


def markdown(table: pd.DataFrame) -> str:
    """A line a job and horizon, then the mean of each horizon."""
    found = right(table)
    head = ["job", "steps", "best WSD rate", "commits at", "adapted", "best / adapted", "the same at a fifth"]
    lines = [
        (
            row["job"], row["steps"], f"{row['best']:.2g}", f"{100 * row['part']:.0f} %",
            f"{row['adapted']:.2g}", f"{row['ratio']:.2f}", f"{row['fifth']:.2f}",
        )
        for row in found.to_dict("records")
    ]  # fmt: skip
    means = []
    for steps, rows in found.groupby("steps"):
        cells = []
        for values in (rows.ratio, rows.fifth):
            logs = np.log(values)
            spread = f"{logs.std(ddof=1):.2f}" if len(rows) > 1 else "–"
            cells += [f"{np.exp(logs.mean()):.2f}", spread]
        means.append((steps, len(rows), *cells))
    mean_head = [
        "steps", "jobs", "best / adapted, geometric mean", "sd of ln", "the same at a fifth", "sd of ln",
    ]  # fmt: skip
    return f"{markdown_table(head, lines)}\n\n{markdown_table(mean_head, means)}"


if __name__ == "__main__":
    commands.run(study)
