"""When to commit to the adapted step size, and what to multiply it with: `python -m studies.one_run.corrections`.

For each job and horizon WSD is trained at rates a factor of two apart until the best lies inside, and a parabola
through the best three gives the best rate. One `metaoptimize` run adapts for a third of the horizon; its mean step size
over the second half of each time until then, beside the best rate, gives the correction that would have been right
after that time. The time to commit at is the one at which that correction scatters least over jobs, and
`strategies.correction` takes its priors from there. A run that holds the best rate says what `strategies.balance`
measures there, where it ought to measure 1. No other study has these jobs and seeds.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer

from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.optim import AdamW
from metaopt_hpo.strategies import LRStrategy, make
from metaopt_hpo.strategies.correction import find_fraction
from studies import run as commands
from studies.one_run.kept import best_rate, has, keep, read, rows_of
from studies.one_run.length_jobs import job
from studies.one_run.lengths import train

KEPT = Path(__file__).parent / "corrections.parquet"
KEY = ["job", "steps", "seed", "method", "lr"]
JOBS = (
    "teach32", "shortgru32", "shorttf16", "shortgru96", "shorttf64", "tf16", "teach128", "tf48",
    "tf20", "tf40", "tf72", "gru56",
)  # fmt: skip
"""Those with `res` need METAOPT_HPO_DATA, and are asked for by name."""

STEPS = (250, 500, 1000, 2000)
SEED = 800
BEGIN = (4e-3, 8e-3, 1.6e-2)
MOST = 9
"""Rates at most."""

SCHEDULE = "wsd"
PARTS = (0.06, 0.12, 0.2, 0.34)
"""Fractions of a run after which it might commit; its own choice is among them or beside them."""

ADAPTED, MEASURED = "adapted to {}", "measured"
WHOLE: dict[int, tuple[tuple[float, float], ...]] = {
    250: ((0.2, 2.0), (0.34, 1.88)),
    500: ((0.12, 1.35), (0.2, 1.29)),
}
"""Horizon → (when to commit, factor) of whole runs: those of the table's columns that could be chosen there."""

FREE = 1e6
"""Factor about the best rate within which a run that measures may go: what it measures counts in full."""


def _own(steps: int) -> float:
    """Fraction after which a run of so many steps commits by itself."""
    return find_fraction(steps, AdamW())


def _whole(find: float, factor: float) -> str:
    return f"whole, at {find:g} times {factor:g}"


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


def paths(name: str, steps: int, seed: int) -> dict[float, float]:
    """Geometric mean of the step size over the second half of each part of an adapting run."""
    data = job(name)
    model = data.model(seed)
    run = make("metaoptimize", find=1.0, correction=1.0).build(model, steps)
    parts = sorted({*PARTS, _own(steps)})
    logs: list[float] = []
    while len(logs) < round(parts[-1] * steps):
        loss = data.loss(model, run.steps_taken, seed)
        loss.backward()
        run.step(loss.detach())
        logs.append(math.log(float(run.step_sizes()[0])))
    return {p: math.exp(np.mean(logs[round(p * steps / 2) : round(p * steps)])) for p in parts}


def measured(name: str, rate: float, steps: int, seed: int) -> float:
    """Factor that a run measures which holds a rate."""
    data = job(name)
    model = data.model(seed)
    strategy = make("metaoptimize", expected=rate, within=FREE)
    run = strategy.build(model, steps)
    last = round(steps * (strategy.horizon_find(steps) + strategy.measure)) + 1  # type: ignore[attr-defined]
    while run.steps_taken < last:
        loss = data.loss(model, run.steps_taken, seed)
        loss.backward()
        run.step(loss.detach())
    return float(run.found_lr) / rate


def study(
    out: Annotated[
        Path, typer.Option(help="Parquet file of the runs; finished ones are not repeated.")
    ] = KEPT,
    jobs: Annotated[str, typer.Option(help="Jobs, by comma.")] = ",".join(JOBS),
    steps: Annotated[str, typer.Option(help="Horizons, by comma.")] = ",".join(map(str, STEPS)),
    again: Annotated[bool, typer.Option("--again", help="Repeat the adapting runs that are kept.")] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """What the adapted step size should have been multiplied with, by job, length and time.

    Example: python -m studies.one_run.corrections --jobs teach32 --steps 500
    """
    torch.set_num_threads(1)
    for count in [] if report_only else map(int, steps.split(",")):
        for name in jobs.split(","):
            key = {"job": name, "steps": count, "seed": SEED}
            tune(out, key, BEGIN)
            own = key | {"method": ADAPTED.format(f"{_own(count):.2f}"), "lr": 0.0}
            if again or not has(read(out, KEY), own):
                for part, found in paths(name, count, SEED).items():
                    method = ADAPTED.format(f"{part:.2f}")
                    keep(out, own | {"method": method}, {"held_out": float("nan"), "found": found})
            for find, factor in WHOLE.get(count, ()):
                row = key | {"method": _whole(find, factor), "lr": 0.0}
                if again or not has(read(out, KEY), row):
                    run = train(job(name), make("metaoptimize", find=find, correction=factor), count, SEED)
                    keep(out, row, {"held_out": run["held_out"], "found": run["step_size"]})
            best = best_rate(rows_of(read(out, KEY), **key, method=SCHEDULE))
            held = key | {"method": MEASURED, "lr": 0.0}
            if best is not None and (again or not has(read(out, KEY), held)):
                factor = measured(name, best, count, SEED)
                keep(out, held, {"held_out": float("nan"), "found": factor})
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
    """A row a job and horizon: best rate, the right correction after each part and at own choice, what it measures."""
    out = []
    for (name, steps, seed), rows in table.groupby(["job", "steps", "seed"], sort=False):
        best = best_rate(rows_of(rows, method=SCHEDULE))
        found = dict(zip(rows.method, rows.get("found", rows.lr), strict=True))
        own = _own(int(str(steps)))
        names = {p: ADAPTED.format(f"{p:.2f}") for p in (own, *PARTS)}
        if best is None or not all(n in found for n in names.values()):
            continue
        row = {"job": name, "steps": steps, "seed": seed, "best": best, "measured": found.get(MEASURED)}
        parts = {f"{p:.2f}": best / found[names[p]] for p in PARTS}
        out.append(row | {"part": own, "own": best / found[names[own]]} | parts)
    return pd.DataFrame(out)


def markdown(table: pd.DataFrame) -> str:
    """A line a job and horizon, then the mean of each horizon, jobs with BatchNorm apart."""
    found = right(table)
    if found.empty:
        return "no job is complete: run python -m studies.one_run.corrections"
    parts = [f"{p:.2f}" for p in PARTS]
    own = "best / adapted at own choice"
    head = [
        "job",
        "steps",
        "best WSD rate",
        "commits at",
        own,
        *(f"at {p}" for p in parts),
        "measured at the best",
    ]
    lines = [
        (
            row["job"], row["steps"], f"{row['best']:.2g}", f"{row['part']:.2f}",
            *(f"{row[c]:.2f}" for c in ("own", *parts, "measured")),
        )
        for row in found.to_dict("records")
    ]  # fmt: skip
    means = []
    plain = found[~found.job.str.startswith("res")]
    for steps, rows in plain.groupby("steps"):
        logs = np.log(rows[["own", *parts, "measured"]].astype(float))
        cells = [f"{math.exp(logs[c].mean()):.2f} ({logs[c].std(ddof=1):.2f})" for c in logs]
        means.append((steps, len(rows), *cells))
    mean_head = ["steps", "jobs", own, *(f"at {p}" for p in parts), "measured at the best"]
    whole = []
    for steps, finds in WHOLE.items():
        at = rows_of(table, steps=steps)
        best = rows_of(at, method=SCHEDULE).groupby("job").held_out.min()
        for find, factor in finds:
            ends = rows_of(at, method=_whole(find, factor)).set_index("job").held_out
            if len(ends):
                over = 100 * (ends / best[ends.index] - 1)
                whole.append(
                    (
                        steps,
                        f"{find:g}",
                        f"{factor:g}",
                        len(ends),
                        f"{over.mean():+.1f} %",
                        f"{over.max():+.1f} %",
                    )
                )
    whole_head = ["steps", "commits at", "times", "jobs", "whole runs over the best schedule", "worst"]
    note = "Geometric means over the jobs without BatchNorm; in brackets the standard deviation of ln."
    tables = (
        markdown_table(head, lines),
        markdown_table(mean_head, means),
        note,
        markdown_table(whole_head, whole),
    )
    return "\n\n".join(tables)


if __name__ == "__main__":
    commands.run(study)
