"""One run over every base rule against seven tuned schedules over the same rule: `python -m studies.one_run.bases`.

The schedule is WSD, the shape that a `metaoptimize` run ends in, and its peak is tuned by seven runs on the first seed:
three a factor of four apart, moved until the best lies inside, then halves of the distance around the best. Other seeds
get the same seven rates. All are kept, and the best is the one that is best in the mean over seeds. Jobs have
other widths and seeds than those on which the constants of `strategies` were chosen.
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
from metaopt_hpo.strategies import LRStrategy, make
from studies import run as commands
from studies.one_run.kept import best_rate, keep, mean_over_jobs, read, rows_of
from studies.one_run.length_jobs import job
from studies.one_run.lengths import train

KEPT = Path(__file__).parent / "bases.parquet"
KEY = ["job", "steps", "seed", "base", "strategy", "lr"]
OURS, SCHEDULE = "metaoptimize", "wsd"
TRIALS = 7
STEPS = 2000
FIRST_SEED = 700
JOBS = ("teach64", "shortgru48", "shorttf48")
BEGIN = {"sgd": 0.5, "sgdm": 0.1, "rmsprop": 4e-3, "lion": 1e-3, "adamw": 8e-3, "muon": 8e-3}
"""Middle of the first three rates of a base rule; also the rules, in the order in which they are run."""

BARE = " unclipped"
"""After a base rule: gradients are not clipped, as in a loop that calls `wrap` on a plain optimizer."""


def strategy(name: str, base: str, **options: Any) -> LRStrategy:
    """A strategy over a base rule of this study's names."""
    if base.endswith(BARE):
        options["max_grad_norm"] = None
    return make(name, base=base.removesuffix(BARE), **options)


def next_rate(tried: dict[float, float], begin: float) -> float:
    """The rate to try next.

    Args:
        tried: loss of each rate so far; one that is not finite counts as the worst.
        begin: the middle of the first three.
    """
    for rate in (begin, 4 * begin, begin / 4):
        if not _among(rate, tried):
            return rate
    rates = sorted(tried)
    losses = [tried[r] if np.isfinite(tried[r]) else float("inf") for r in rates]
    best = int(np.argmin(losses))
    if best == 0:
        return rates[0] / 4
    if best == len(rates) - 1:
        return rates[-1] * 4
    # the wider gap beside the best; of two equal ones that towards the better neighbour
    below, above = rates[best] / rates[best - 1], rates[best + 1] / rates[best]
    low = below > 1.01 * above or (below > above / 1.01 and losses[best - 1] < losses[best + 1])
    return float((rates[best] * rates[best - 1 if low else best + 1]) ** 0.5)


def _among(rate: float, tried: dict[float, float]) -> bool:
    return any(abs(r / rate - 1) < 1e-6 for r in tried)


def study(
    out: Annotated[
        Path, typer.Option(help="Parquet file of the runs; finished ones are not repeated.")
    ] = KEPT,
    jobs: Annotated[str, typer.Option(help="Jobs, by comma.")] = ",".join(JOBS),
    bases: Annotated[str, typer.Option(help="Base rules, by comma.")] = ",".join(BEGIN),
    steps: Annotated[int, typer.Option(help="Steps of a run.", min=1)] = STEPS,
    seeds: Annotated[int, typer.Option(help="Seeds of each pair.", min=1)] = 2,
    first_seed: Annotated[int, typer.Option(help="The first of them.", min=0)] = FIRST_SEED,
    only: Annotated[str, typer.Option(help="Run this strategy alone.")] = "",
    again: Annotated[
        bool, typer.Option("--again", help="Repeat the metaoptimize runs that are kept.")
    ] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """One run over every base rule against seven tuned WSD schedules over the same rule.

    Example: python -m studies.one_run.bases --jobs teach64 --bases sgdm
    """
    torch.set_num_threads(1)
    asked = [
        (b, j, s)
        for b in bases.split(",")
        for s in range(first_seed, first_seed + seeds)
        for j in jobs.split(",")
    ]
    renew = set(asked) if again else set()
    for base, name, seed in [] if report_only else asked:
        key = {"job": name, "steps": steps, "seed": seed, "base": base}
        if only in ("", SCHEDULE):
            _tune(out, key, first_seed)
        if only in ("", OURS):
            mine = key | {"strategy": OURS, "lr": 0.0}
            if rows_of(read(out, KEY), **mine).empty or (base, name, seed) in renew:
                _keep(out, mine, train(job(name), strategy(OURS, base), steps, seed))
    typer.echo(markdown(read(out, KEY)))


def _tune(out: Path, key: dict[str, Any], first_seed: int) -> None:
    """The seven schedules of a base rule on a job and a seed."""
    while True:
        kept = rows_of(read(out, KEY), **key, strategy=SCHEDULE)
        tried = dict(zip(kept.lr, kept.held_out, strict=True))
        if key["seed"] == first_seed:
            if len(tried) >= TRIALS:
                return
            rate = next_rate(tried, BEGIN[key["base"].removesuffix(BARE)])
        else:
            first = rows_of(read(out, KEY), **key | {"seed": first_seed}, strategy=SCHEDULE).lr
            missing = [r for r in first if not _among(r, tried)]
            if not missing:
                return
            rate = missing[0]
        schedule = strategy(SCHEDULE, key["base"], lr=rate)
        _keep(
            out,
            key | {"strategy": SCHEDULE, "lr": rate},
            train(job(key["job"]), schedule, key["steps"], key["seed"]),
        )


def _keep(out: Path, key: dict[str, Any], found: dict[str, float]) -> None:
    """Add a run, and say so."""
    keep(out, key, found)
    typer.echo(
        " ".join(map(str, key.values())) + f": {found['held_out']:.4f} at {found['step_size']:.3g}", err=True
    )


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """A row a base rule, job and seed: our loss beside that of the rate which is best in the mean over seeds.

    Per cent over it are in `excess`; in `own` those over the seed's own best rate, whose selection bias is against us,
    in `others` those over the rate that is best on the other seeds (nan with one seed).
    """
    out = []
    for (base, name, steps), rows in table.groupby(["base", "job", "steps"], sort=False):
        ours = rows_of(rows, strategy=OURS)
        tuned = rows_of(rows, strategy=SCHEDULE)
        grid = tuned[tuned.seed.isin(ours.seed)].pivot_table(index="lr", columns="seed", values="held_out")
        grid = grid.dropna()
        if grid.empty:
            continue
        best = grid.mean(axis=1).idxmin()
        theirs = dict(zip(tuned.seed[tuned.lr == best], tuned.held_out[tuned.lr == best], strict=True))
        for mine in ours[ours.seed.isin(grid.columns)].to_dict("records"):
            seed, tuned_loss = mine["seed"], float(theirs[mine["seed"]])
            rest = grid.drop(columns=seed).mean(axis=1)
            other = math.nan if rest.isna().all() else float(grid.loc[rest.idxmin(), seed])
            out.append(
                {
                    "base": base,
                    "job": name,
                    "steps": steps,
                    "seed": mine["seed"],
                    "held_out": mine["held_out"],
                    "step_size": mine["step_size"],
                    "tuned": tuned_loss,
                    "tuned_lr": best,
                    "trials": len(grid),
                    "excess": 100 * (float(mine["held_out"]) / tuned_loss - 1),
                    "own": 100 * (float(mine["held_out"]) / float(grid[seed].min()) - 1),
                    "others": 100 * (float(mine["held_out"]) / other - 1),
                }
            )
    return pd.DataFrame(out)


def markdown(table: pd.DataFrame) -> str:
    """A line a base rule, job and length, then one a base rule and length: mean excess over the tuned schedules."""
    found = compared(table)
    job_head = [
        "base", "job", "steps", "seeds", "one run", "at", "best WSD", "at", "of", "one run against it",
    ]  # fmt: skip
    if found.empty:
        return markdown_table(job_head, [])
    by_job = []
    for (base, name, steps), rows in found.groupby(["base", "job", "steps"], sort=False):
        size = float(np.exp(np.log(rows.step_size).mean()))
        own = (f"{rows.held_out.mean():.4f}", f"{size:.2g}")
        tuned = (f"{rows.tuned.mean():.4f}", f"{rows.tuned_lr.iloc[0]:.2g}", rows.trials.iloc[0])
        by_job.append((base, name, f"{steps:,}", len(rows), *own, *tuned, f"{rows.excess.mean():+.1f} %"))
    by_base = []
    for (base, steps), rows in found.groupby(["base", "steps"], sort=False):
        means = rows.groupby("job")[["excess", "own", "others"]].mean()
        spread = [mean_over_jobs(means[column].dropna()) for column in means]
        by_base.append((base, f"{steps:,}", len(means), *spread, f"{means.excess.max():+.1f} %"))
    by_rate = []
    rates = best_rates(table)
    for (base, name), rate in rates.items():
        usual = rates.get(("adamw", name))
        if usual and base != "adamw":
            by_rate.append((base, name, f"{rate:.2g}", f"{usual:.2g}", f"{rate / usual:.2g}"))
    base_head = [
        "base", "steps", "jobs", "mean excess (90 % interval over jobs)", "against each seed's best",
        "against the best on the other seeds", "worst job",
    ]  # fmt: skip
    rate_head = ["base", "job", "best lr", "AdamW's best", "over it"]
    tables = ((job_head, by_job), (base_head, by_base), (rate_head, by_rate))
    return "\n\n".join(markdown_table(head, rows) for head, rows in tables)


def best_rates(table: pd.DataFrame) -> dict[tuple[str, str], float]:
    """(base, job) → `best_rate` of the first seed, where there is one."""
    tuned = rows_of(table, strategy=SCHEDULE, steps=STEPS, seed=FIRST_SEED)
    found = {
        (str(base), str(name)): best_rate(rows)
        for (base, name), rows in tuned.groupby(["base", "job"], sort=False)
    }
    return {key: rate for key, rate in found.items() if rate is not None}


if __name__ == "__main__":
    commands.run(study)
