"""A step size for every layer or tensor beside one for all: `python -m studies.one_run.blocks`.

Runs from scratch of the jobs and seeds of `bases`, whose runs with one step size are the other side of each pair and
are not repeated; weights and batches are the same. Two runs that differ by nothing that matters part ways too: a
control, one step size for all whose first step may be a twentieth larger, says how far. Fine-tuning, where layers
differ more, is in `fine_tuning`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.strategies import make
from studies import run as commands
from studies.one_run import bases
from studies.one_run.kept import has, keep, mean_over_jobs, read, rows_of
from studies.one_run.length_jobs import job
from studies.one_run.lengths import train

KEPT = Path(__file__).parent / "blocks.parquet"
KEY = ["job", "steps", "seed", "blocks"]
ONE, CONTROL = "scalar", "control"
OTHERS: dict[str, dict[str, Any]] = {
    CONTROL: {"limit": 0.0105},
    "layer": {"blocks": "layer"},
    "tensor": {"blocks": "tensor"},
}
"""What is compared with one step size for all: options of the strategy."""

JOBS = ("teach64", "shorttf48", "shortgru48", "shorttf24")
CONTROLLED = ("teach64", "shortgru48")
"""Jobs with a control."""


def study(
    out: Annotated[
        Path, typer.Option(help="Parquet file of the runs; finished ones are not repeated.")
    ] = KEPT,
    jobs: Annotated[str, typer.Option(help="Jobs, by comma.")] = ",".join(JOBS),
    seeds: Annotated[int, typer.Option(help="Seeds of each pair.", min=1)] = 2,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """A step size for every layer or tensor beside one for all, from scratch.

    Example: python -m studies.one_run.blocks --jobs teach64
    """
    torch.set_num_threads(1)
    known = _one(read(out, KEY))
    for seed in [] if report_only else range(bases.FIRST_SEED, bases.FIRST_SEED + seeds):
        for name in jobs.split(","):
            _run(out, known, {"job": name, "steps": bases.STEPS, "seed": seed, "blocks": ONE})
            for blocks in OTHERS:
                if blocks == CONTROL and name not in CONTROLLED:
                    continue
                _run(out, read(out, KEY), {"job": name, "steps": bases.STEPS, "seed": seed, "blocks": blocks})
    typer.echo(markdown(read(out, KEY)))


def _run(out: Path, known: pd.DataFrame, key: dict[str, Any]) -> None:
    """Train a run that is not known yet, and keep it."""
    if has(known, key):
        return
    strategy = make("metaoptimize", **OTHERS.get(key["blocks"], {}))
    keep(out, key, found := train(job(key["job"]), strategy, key["steps"], key["seed"]))
    typer.echo(f"{list(key.values())}: {found['held_out']:.4f} at {found['step_size']:.3g}", err=True)


def _one(table: pd.DataFrame) -> pd.DataFrame:
    """The runs with one step size: those of this study and of `bases`."""
    of_bases = rows_of(read(bases.KEPT, bases.KEY), base="adamw", strategy=bases.OURS)
    both = [rows_of(table, blocks=ONE)[[*KEY, "held_out"]], of_bases.assign(blocks=ONE)[[*KEY, "held_out"]]]
    return pd.concat([t for t in both if len(t)])


def compared(table: pd.DataFrame, one: pd.DataFrame) -> pd.DataFrame:
    """A row a run: its loss and, in `excess`, per cent over the run with one step size on the same job and seed.

    Args:
        table: runs of any blocks; those with one step size are left out.
        one: runs with one step size.
    """
    pairs = table[table.blocks != ONE].merge(
        one.drop(columns="blocks"), on=["job", "steps", "seed"], suffixes=("", "_one")
    )
    return pairs.assign(excess=100 * (pairs.held_out / pairs.held_out_one - 1))


def markdown(table: pd.DataFrame) -> str:
    """A line a job, then one a kind of blocks: mean over jobs."""
    pairs = compared(table, _one(table))
    lines, means = [], []
    for (name, steps), rows in pairs.groupby(["job", "steps"], sort=False):
        common = rows.drop_duplicates("seed").held_out_one.mean()
        cells = [_over_seeds(rows_of(rows, blocks=blocks).excess) for blocks in OTHERS]
        lines.append((name, f"{steps:,}", rows.seed.nunique(), f"{common:.4f}", *cells))
    for blocks in OTHERS:
        of = rows_of(pairs, blocks=blocks)
        by_job = of.groupby("job").excess.mean()
        if len(by_job):
            spread = f"{of.groupby('job').excess.var().mean() ** 0.5:.2f} %"
            worst = f"{by_job.max():+.2f} %"
            means.append((blocks, len(by_job), mean_over_jobs(by_job, digits=2), worst, spread))
    head = ["job", "steps", "seeds", "one for all", *(f"{blocks} against it" for blocks in OTHERS)]
    of_means = ["step sizes", "jobs", "mean excess (90 % interval over jobs)", "worst job", "sd of a pair"]
    return f"{markdown_table(head, lines)}\n\n{markdown_table(of_means, means)}"


def _over_seeds(excess: pd.Series[float]) -> str:
    """Mean in per cent, with its standard error."""
    if excess.empty:
        return "–"
    values = excess.to_numpy(float)
    error = f" ± {values.std(ddof=1) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{values.mean():+.2f} %{error}"


if __name__ == "__main__":
    commands.run(study)
