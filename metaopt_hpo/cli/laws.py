"""The commands fit, predict and laws of the command line; `metaopt_hpo.cli.app` registers them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metaopt_hpo.cli.reading import (
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
    numbers,
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


class OutOfRange(MetaOptError):
    """A prediction was asked for so far outside a law's range that it would say nothing."""


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
    base: Annotated[
        list[str] | None,
        typer.Option(
            help="Runs of like models to borrow strength from: a table of ours, a law's JSON file, or a fitted law of "
            "the library; may be given several times."
        ),
    ] = None,
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
    from metaopt_hpo.scaling import Law, library
    from metaopt_hpo.scaling import fit as fit_table

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
        lean_on = Law.from_json(Path(prior)) if Path(prior).is_file() else library.prior(prior)
    law = fit_table(
        trials,
        use=use,  # type: ignore[arg-type]
        strategy=strategy,
        extra=tuple(extra or ()),
        prior=lean_on,
        base=[_base(b) for b in base] if base else None,
        allow_weak=allow_weak,
        seed=seed,
    )
    typer.echo(law.describe())
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


def _base(source: str) -> Law | TrialTable | str:
    """A base as `fit` takes it: a law's file, a table's file, or a name of the library."""
    from metaopt_hpo.scaling import Law
    from metaopt_hpo.trials.table import TrialTable

    path = Path(source)
    if not path.is_file():
        return source
    return Law.from_json(path) if path.suffix == ".json" and _is_law(path) else TrialTable.read(path)


def _is_law(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as f:
        return "metaopt-hpo law" in f.read(64)


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


def predict(
    law: Annotated[Path, typer.Argument(help="A law written by `metaopt-hpo fit --out`.")],
    size: Annotated[
        float,
        typer.Option(parser=amount, metavar="N", help="Trainable non-embedding parameters, e.g. 3B."),
    ],
    tokens: Annotated[float, typer.Option(parser=amount, metavar="N", help="Training tokens, e.g. 60B.")],
    batch: Annotated[
        float | None,
        typer.Option(
            parser=amount,
            metavar="N",
            help="Tokens per step, if it is given; else the best one is predicted.",
        ),
    ] = None,
    sequence_length: Annotated[
        float | None, typer.Option(help="Tokens in a sequence: the batch is said in sequences too.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Predict however far outside the fitted range it is.")
    ] = False,
    extra: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE of a further coordinate, e.g. weight_decay=0.1. [default: the largest runs']"
        ),
    ] = None,
) -> None:
    """Predict the best learning rate, batch and loss of a model, with intervals.

    Example: metaopt-hpo predict law.json --size 7B --tokens 1.4T
    """
    from metaopt_hpo.scaling import Law

    given = numbers("--extra", extra)
    _show(Law.from_json(law), size, tokens, batch, given, sequence_length=sequence_length, force=force)


def laws(
    name: Annotated[
        str | None, typer.Argument(help="A law of the library; without one, all are listed.")
    ] = None,
    size: Annotated[
        float | None,
        typer.Option(parser=amount, metavar="N", help="Parameters of a model to predict for, e.g. 3B."),
    ] = None,
    tokens: Annotated[
        float | None, typer.Option(parser=amount, metavar="N", help="Its training tokens, e.g. 60B.")
    ] = None,
    batch: Annotated[
        float | None,
        typer.Option(parser=amount, metavar="N", help="Tokens per step, for laws that need it."),
    ] = None,
    anchor: Annotated[
        str | None,
        typer.Option(
            help="SIZE,TOKENS,LR of a known optimum (SIZE,TOKENS,BATCH for a law of the batch), for laws that give "
            "exponents only."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a fitted law here, as JSON.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Predict however far outside the fitted range it is.")
    ] = False,
) -> None:
    """List published and fitted laws, or ask one of them.

    Example: metaopt-hpo laws step-law --size 7B --tokens 1.4T
    """
    from metaopt_hpo.scaling import library

    if name is None:
        for known in library.names():
            typer.echo(f"{known:<24} {library.load(known).title}")
        typer.echo("\nOne of them in full: metaopt-hpo laws NAME")
        return
    law = library.load(name)
    typer.echo(f"{law.title}\nsource: {law.source}\nunits:  {law.units}")
    if isinstance(law, library.FittedLaw):
        typer.echo(f"licence: {law.licence}\n{law.law.describe()}")
    else:
        for label, term in (("lr*", law.lr), ("batch*", law.batch)):
            if term is not None:
                typer.echo(f"{label} = {_formula(term)}")
        if law.loss:
            typer.echo("loss* = " + " + ".join(_formula(t) for t in law.loss))
        for axis, (low, high) in law.domain.items():
            typer.echo(f"fitted on {axis} {low:.3g} to {high:.3g}")
        if law.note:
            typer.echo(law.note)
    for table, e in law.errors.items():
        typer.echo(
            f"excess on {table}: {100 * e['mean']:.2f} % mean, {100 * e['max']:.2f} % worst of {e['cells']:.0f} cells"
        )
    if out is not None:
        if not isinstance(law, library.FittedLaw):
            raise MetaOptError(f"{name} is a published formula; --out writes fitted laws")
        law.law.to_json(out)
        typer.echo(f"law written to {out}")
    if size is None and tokens is None:
        return
    if size is None or tokens is None:
        raise MetaOptError("a prediction needs both --size and --tokens")
    if isinstance(law, library.FittedLaw):
        _show(law.law, size, tokens, batch, force=force)
        return
    _within(law.domain, {"size": size, "tokens": tokens}, force=force)
    if law.lr is not None:
        typer.echo(f"lr    {law.predict_lr(size, tokens, batch=batch, anchor=_anchor(anchor)):.4g}")
    if law.batch is not None and (law.lr is None or not math.isnan(law.batch.coefficient)):
        typer.echo(f"batch {law.predict_batch(size, tokens, anchor=_anchor(anchor)):.4g} tokens per step")
    if law.loss:
        typer.echo(f"loss  {law.predict_loss(size, tokens):.4g} nats per token")


UNITS = {"batch": "tokens per step", "loss": "nats per token"}


def _show(
    law: Law,
    size: float,
    tokens: float,
    batch: float | None,
    extra: dict[str, float] | None = None,
    *,
    sequence_length: float | None = None,
    force: bool = False,
) -> None:
    _within(
        {"size": law.domain.size, "tokens": law.domain.tokens}, {"size": size, "tokens": tokens}, force=force
    )
    found = law.predict(size=size, tokens=tokens, batch=batch, extra=extra)
    typer.echo(f"for {said(size)} parameters and {said(tokens)} tokens:")
    for name in ("lr", "batch", "loss"):
        e = getattr(found, name)
        unit = UNITS.get(name, "")
        if name == "batch" and sequence_length:
            unit += f" ({e.value / sequence_length:.4g} sequences)"
        line = f"{name:<6} {e.value:.4g}   {law.level:.0%} interval {e.low:.4g} to {e.high:.4g}   {unit}"
        typer.echo(line.rstrip())
    for warning in found.warnings:
        typer.echo(f"warning [{warning.code}] {command_line(warning.message)}", err=True)


FAR = 1e4
"""How many times outside the fitted range a prediction says nothing: four decades, where real plans span two."""


def _within(domain: Mapping[str, tuple[float, float]], asked: Mapping[str, float], *, force: bool) -> None:
    """Refuse what lies absurdly far outside a law's range: most often a wrong unit."""
    for name, value in asked.items():
        if name not in domain:
            continue
        low, high = domain[name]
        factor = max(value / high, low / value)
        if factor > FAR and not force:
            side = "above" if value > high else "below"
            raise OutOfRange(
                f"--{name} {said(value)} lies {factor:.2g} times {side} the fitted range ({said(low)} to "
                f"{said(high)}); check its unit, or pass --force"
            )


def _formula(term: object) -> str:
    from metaopt_hpo.scaling.library import Monomial

    if not isinstance(term, Monomial):
        raise TypeError(f"expected a monomial, got {type(term).__name__}")
    powers = " · ".join(f"{k}^{v:g}" for k, v in term.exponents.items())
    if math.isnan(term.coefficient):
        return f"(not published) · {powers}"
    return f"{term.coefficient:g}" + (f" · {powers}" if powers else "")


def _anchor(text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    parts = text.split(",")
    try:
        size, tokens, lr = (float(p) for p in parts)
    except ValueError:
        raise MetaOptError(f"--anchor must be SIZE,TOKENS,LR, got {text!r}") from None
    return size, tokens, lr
