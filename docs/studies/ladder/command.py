"""The command of the ladder: runs what is missing and prints the tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studies.ladder import runs

if TYPE_CHECKING:
    from metaopt_hpo.trials.record import TrialRecord


def ladder(
    out: Annotated[
        Path, typer.Option(help="Parquet file of the runs; finished ones are not repeated.")
    ] = runs.KEPT,
    seeds: Annotated[int, typer.Option(help="Seeds of each cell.", min=1)] = 5,
    minutes: Annotated[
        float | None, typer.Option(help="Start no further run after so many minutes.", min=0.0)
    ] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """MetaOptimize runs and WSD over lr on text-lm at six widths and three token counts, paired by seed.

    About 20 minutes a seed on one core. Interrupt with Ctrl-C at any time and start the same command again.

    Example: python -m studies.ladder --seeds 1 --minutes 10
    """
    table = (
        runs.read(out)
        if report_only
        else runs.collect(list(runs.design(seeds)), out, minutes=minutes, progress=_say)
    )
    from studies.ladder import bands, judge

    found = judge.cells(table)
    typer.echo(f"{len(table)} runs in {out}, {len(found)} complete cells\n")
    typer.echo("\n\n".join(s.markdown() for s in (judge.found(found), judge.worth(found), bands.held(found))))


def _say(done: int, every: int, record: TrialRecord) -> None:
    typer.echo(f"{done:>4}/{every}  {record.trial:<40} {record.state:<9} {record.loss:.4f}", err=True)
