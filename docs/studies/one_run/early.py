"""When a short run should commit to its step size: `python -m studies.one_run.early`.

Text-lm of the ladder's widest models, where a run that adapted for a fifth of its steps ended up to 4 % above the best
of five WSD runs, and of its smallest, where early runs under the usual correction did. Each cell trains one run at a
fraction `find`, from the weights and on the batches of the ladder's WSD runs, which are read from its kept table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.strategies import make
from metaopt_hpo.workloads import TextLM, train
from studies import run as commands
from studies.ladder.runs import KEPT as LADDER
from studies.ladder.runs import SCHEDULE
from studies.one_run.kept import has, keep, read

KEPT = Path(__file__).parent / "early.parquet"
KEY = ["width", "steps", "seed", "find"]
CELLS = ((16, 512), (16, 1024), (64, 512), (96, 512), (96, 1024))
FINDS = (0.0, 0.15, 0.2, 0.3)
"""Fractions of the run; 0 stands for the strategy's own choice."""


def study(
    out: Annotated[
        Path, typer.Option(help="Parquet file of the runs; finished ones are not repeated.")
    ] = KEPT,
    finds: Annotated[str, typer.Option(help="Fractions, by comma.")] = ",".join(map(str, FINDS)),
    seeds: Annotated[int, typer.Option(help="Seeds of each cell.", min=1)] = 2,
    again: Annotated[bool, typer.Option("--again", help="Repeat the runs that are kept.")] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """One run at several fractions of adaptation against the ladder's WSD runs.

    Example: python -m studies.one_run.early --finds 0 --seeds 1
    """
    torch.set_num_threads(1)
    for find in [] if report_only else map(float, finds.split(",")):
        for width, steps in CELLS:
            for seed in range(seeds):
                key = {"width": width, "steps": steps, "seed": seed, "find": find}
                if not again and has(read(out, KEY), key):
                    continue
                job = TextLM(width=width)
                strategy = make("metaoptimize", find=find or None)
                run = train(job, strategy, tokens=steps * job.batch, seed=seed, reports=2)
                record = run.record(trial="early", study="early", method="metaoptimize", engine="study")
                keep(out, key, {"loss": record.loss, "found": record.found_lr})
                typer.echo(f"{key}: {record.loss:.4f} at {record.found_lr:.3g}", err=True)
    table = read(out, KEY)
    typer.echo(markdown(table, pd.read_parquet(LADDER)))


def markdown(table: pd.DataFrame, ladder: pd.DataFrame) -> str:
    """A line a cell and fraction: loss over the best of the ladder's WSD runs, seed by seed, and the rates."""
    head = (
        "width", "steps", "adapts for", "seeds", "lr found", "best WSD at", "over the best of five WSD runs",
    )  # fmt: skip
    lines = []
    tuned = ladder[ladder.strategy == SCHEDULE]
    for (width, steps, find), rows in table.groupby(["width", "steps", "find"], sort=True):
        excess, rates = [], []
        for row in rows.to_dict("records"):
            begins = tuned.trial.str.startswith(f"w{width}/k{steps}/") & (tuned.seed == row["seed"])
            same = tuned[begins].sort_values("loss")
            excess.append(100 * (float(row["loss"]) / float(same.loss.iloc[0]) - 1))
            rates.append(f"{float(same.lr.iloc[0]):.2g}")
        shown = "its own choice" if not float(str(find)) else f"{100 * float(str(find)):.0f} %"
        found = ", ".join(f"{v:.2g}" for v in rows.found)
        over = ", ".join(f"{v:+.1f} %" for v in excess)
        lines.append((width, steps, shown, len(rows), found, ", ".join(rates), over))
    return markdown_table(head, lines)


if __name__ == "__main__":
    commands.run(study)
