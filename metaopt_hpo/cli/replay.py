"""The command replay of the command line; `metaopt_hpo.cli.app` registers it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from metaopt_hpo.cli.reading import (
    Base,
    Columns,
    Decimal,
    Format,
    Implausible,
    SequenceLength,
    Source,
    TakeFinished,
    Units,
    Wandb,
    amount,
    bases,
    read_table,
)
from metaopt_hpo.errors import MetaOptError


def replay(
    table: Source,
    size: Annotated[
        float, typer.Option(parser=amount, metavar="N", help="Size of the target; one of the table's.")
    ],
    tokens: Annotated[
        float,
        typer.Option(
            parser=amount, metavar="N", help="Tokens of the target; some of the table's at that size."
        ),
    ],
    columns: Columns = None,
    units: Units = None,
    sequence_length: SequenceLength = None,
    wandb: Wandb = False,
    format: Format = None,
    decimal: Decimal = None,
    take_finished: TakeFinished = False,
    implausible: Implausible = False,
    methods: Annotated[str, typer.Option(help="Comma-separated.")] = "law,tpe,random,grid",
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions of each method.")] = 10,
    limit: Annotated[float, typer.Option(help="Target runs after which a method has failed.")] = 150.0,
    base: Base = None,
    page: Annotated[Path | None, typer.Option(help="Write the curves here, as HTML.")] = None,
) -> None:
    """Replay search methods on a table of real runs and compare what each one spends.

    Example: metaopt-hpo replay runs.csv --size 430M --tokens 50B
    """
    from metaopt_hpo.comparison.replay import replay as run
    from metaopt_hpo.comparison.table_objective import TableObjective

    trials = read_table(
        table,
        columns,
        units,
        sequence_length,
        wandb=wandb,
        format=format,
        decimal=decimal,
        take_finished=take_finished,
        implausible=implausible,
    )
    objective = TableObjective(trials)
    near = min(objective.cells, key=lambda c: math.log(c[0] / size) ** 2 + math.log(c[1] / tokens) ** 2)
    if abs(near[0] / size - 1) > 0.02 or abs(near[1] / tokens - 1) > 0.02:
        raise MetaOptError(
            f"the table has no cell near size {size:.4g} and {tokens:.4g} tokens; the nearest is "
            f"{near[0]:.6g} × {near[1]:.6g}"
        )
    result = run(
        objective,
        near,
        methods=[m.strip() for m in methods.split(",") if m.strip()],
        seeds=seeds,
        limit=limit,
        base=bases(base),
    )
    typer.echo(
        f"target {near[0]:.4g} parameters × {near[1]:.4g} tokens; a grid search costs {result.grid_size} target runs"
    )
    typer.echo(
        f"{'method':<11}{'within':>8}{'median':>9}{'mean':>9}{'p90':>9}{'reached':>9}   (target runs, pilots included)"
    )
    for row in result.summary().to_dict("records"):
        typer.echo(
            f"{row['method']:<11}{row['within']:>8}{row['median']:>9.2f}{row['mean']:>9.2f}{row['p90']:>9.2f}"
            f"{row['reached']:>9.0%}"
        )
    if page is not None:
        from metaopt_hpo.atomic import write_text
        from metaopt_hpo.report.replay_page import replay_page

        write_text(page, replay_page(result, Path(table).name))
        typer.echo(f"curves written to {page}")
