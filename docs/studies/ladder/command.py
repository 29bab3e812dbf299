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
    online: Annotated[
        bool, typer.Option(help="Also run the largest width from a law's lr, adapted online.")
    ] = False,
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
    from metaopt_hpo.workloads import TextLM
    from studies.ladder import bands, judge
    from studies.ladder import online as light

    found = judge.cells(table.records())
    typer.echo(f"{len(table)} runs in {out}, {len(found)} complete cells\n")
    sections = [judge.found(found), judge.worth(found), bands.held(found)]
    batch = TextLM().batch
    chosen = light.design(found, batch)
    if online and not report_only:
        runs.collect([rung for *_, rung in chosen], light.KEPT, minutes=minutes, progress=_say)
        runs.collect(light.long_grid(), light.KEPT, minutes=minutes, progress=_say)
    kept = runs.read(light.KEPT).records() if light.KEPT.exists() else []
    longer = light.long_design(kept, batch)
    if online and not report_only:
        kept = runs.collect(
            [rung for *_, rung in longer], light.KEPT, minutes=minutes, progress=_say
        ).records()
    if kept:
        sections.append(light.compared([*chosen, *longer], kept))
    typer.echo("\n\n".join(s.markdown() for s in sections))


def _say(done: int, every: int, record: TrialRecord) -> None:
    typer.echo(f"{done:>4}/{every}  {record.trial:<40} {record.state:<9} {record.loss:.4f}", err=True)
