"""The command of the study: runs what is missing, prints the tables and writes the page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from metaopt_hpo.trials.record import TrialRecord


def study(
    out: Annotated[
        Path, typer.Option(help="Folder, or .parquet file, of the runs; finished ones are not run again.")
    ] = Path(__file__).parent,
    seeds: Annotated[int, typer.Option(help="Seeds of the comparisons that make a claim.", min=1)] = 5,
    short: Annotated[
        bool, typer.Option("--short", help="Small models only: minutes instead of hours.")
    ] = False,
    minutes: Annotated[
        float | None, typer.Option(help="Start no further run after so many minutes.", min=0.0)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Runs at once, one thread each. [default: CPUs]", min=1)
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Page to write. [default: study.html beside the runs]")
    ] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """One MetaOptimize run against tuned schedules and every rival, on all workloads.

    Image cases need METAOPT_HPO_DATA, the folder that holds cifar-10-batches-bin; without it they are left out.
    Interrupt with Ctrl-C at any time and start the same command again.

    Example: python -m studies.one_run --short
    """
    from metaopt_hpo.atomic import write_text
    from studies.one_run import runner
    from studies.one_run.cases import cells
    from studies.one_run.outcome import judge
    from studies.one_run.page import markdown, render

    if report_only:
        table = runner.read(out)
    else:
        try:
            table = runner.run(
                cells(seeds=seeds, short=short), out, workers=workers, minutes=minutes, progress=_say
            )
        except KeyboardInterrupt:
            typer.echo("interrupted; finished runs are kept, the same command goes on from there", err=True)
            raise typer.Exit(130) from None
    typer.echo(markdown(judge(table)))
    path = page or runner.table_path(out).with_suffix(".html")
    write_text(path, render(table))
    typer.echo(f"page written to {path}")


def _say(done: int, every: int, record: TrialRecord) -> None:
    typer.echo(
        f"{done:>5}/{every}  {record.trial:<60} {record.state:<9} {record.loss:.4f}  {record.reason}",
        err=True,
    )
