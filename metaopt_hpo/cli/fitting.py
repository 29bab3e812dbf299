"""The command fit of the command line; `metaopt_hpo.cli.app` registers it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    named,
    read_law,
    read_table,
    said,
)
from metaopt_hpo.cli.words import command_line
from metaopt_hpo.errors import MetaOptError

if TYPE_CHECKING:
    from metaopt_hpo.scaling import Law
    from metaopt_hpo.trials.table import TrialTable

SAME_SIZE = 0.02
"""Sizes that differ by less, relatively, are one to a person who names them."""


def fit(
    table: Source,
    columns: Columns = None,
    units: Units = None,
    sequence_length: SequenceLength = None,
    wandb: Wandb = False,
    format: Format = None,
    decimal: Decimal = None,
    take_finished: TakeFinished = False,
    implausible: Implausible = False,
    out: Annotated[Path | None, typer.Option(help="Write the law here, as JSON.")] = None,
    use: Annotated[
        str,
        typer.Option(
            help="Which runs to fit: fixed (on a schedule), plateau (with an lr that they found themselves) or all."
        ),
    ] = "fixed",
    strategy: Annotated[str | None, typer.Option(help="Only trials of this strategy.")] = None,
    extra: Annotated[
        list[str] | None, typer.Option(help="A hyperparameter that moves the optimum too, e.g. weight_decay.")
    ] = None,
    prior: Annotated[
        str | None, typer.Option(help="A fitted law of the library, or a law's JSON file, used as a prior.")
    ] = None,
    base: Base = None,
    page: Annotated[Path | None, typer.Option(help="Write the law's figures here, as HTML.")] = None,
    allow_weak: Annotated[
        bool, typer.Option(help="Fit although there is too little data; the law then carries warnings.")
    ] = False,
    hold_out: Annotated[
        float | None,
        typer.Option(
            parser=amount,
            metavar="SIZE",
            help="Fit sizes below this one only, and say how well the law predicts the others, e.g. 180M.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap behind the intervals.")] = 0,
) -> None:
    """Fit a law across sizes to a table of trials.

    The table needs columns size, tokens, batch, lr and loss; metaopt-hpo inspect TABLE says what was found.

    Example: metaopt-hpo fit trials.csv --map size=N,batch=bsz --out law.json
    """
    from metaopt_hpo.scaling import fit as fit_table
    from metaopt_hpo.scaling import library

    if use not in ("fixed", "plateau", "all"):
        raise MetaOptError(f"--use must be fixed, plateau or all, got {use!r}")
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
    held = None
    if hold_out is not None:
        trials, held = _split(trials, hold_out)
    lean_on = None
    if prior is not None:
        lean_on = read_law(Path(prior)) if Path(prior).exists() else library.prior(named("--prior", prior))
    law = fit_table(
        trials,
        use=use,  # type: ignore[arg-type]
        strategy=strategy,
        extra=tuple(extra or ()),
        prior=lean_on,
        base=bases(base),
        allow_weak=allow_weak,
        seed=seed,
    )
    typer.echo(command_line(law.describe()))
    if held is not None:
        from metaopt_hpo.comparison.held_out import predicted_and_found

        typer.echo(f"\nsizes from {hold_out:g}, not fitted:\n{predicted_and_found(law, held)}")
    if out is not None:
        law.to_json(out)
        typer.echo(f"law written to {out}")
    if page is not None:
        typer.echo(
            f"page written to {write_page(law, trials, page, f'Law fitted to {Path(table).name}', held)}"
        )


def write_page(law: Law, trials: TrialTable, page: Path, title: str, held: TrialTable | None = None) -> Path:
    """Write a law's figures as a page."""
    from metaopt_hpo.report.law_page import figures_of, law_page
    from metaopt_hpo.report.sections import Source

    rests = (
        f"{len(trials)} trials of {title.removeprefix('Law fitted to ')}; metaopt-hpo fit makes the law again"
    )
    return law_page(title, law, figures_of(law, trials, held), page, [Source(rests)])


def _split(trials: TrialTable, size: float) -> tuple[TrialTable, TrialTable]:
    """Trials below a size, and those from it on; 180M means models of 179.6 million parameters too."""
    sizes = trials.frame["size"].to_numpy()
    large = sizes >= size * (1 - SAME_SIZE)
    if large.all() or not large.any():
        side = "below" if large.all() else "from"
        raise MetaOptError(
            f"--hold-out {said(size)} leaves no trial {side} it: sizes are {said(sizes.min())} to {said(sizes.max())}"
        )
    return trials.select(where=~large), trials.select(where=large)
