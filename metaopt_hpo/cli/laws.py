"""The commands predict and laws of the command line; `metaopt_hpo.cli.app` registers them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metaopt_hpo.cli.reading import (
    amount,
    pairs,
    read_law,
    said,
)
from metaopt_hpo.cli.words import command_line
from metaopt_hpo.errors import MetaOptError

if TYPE_CHECKING:
    from metaopt_hpo.scaling import Law
    from metaopt_hpo.scaling.estimates import Prediction


class OutOfRange(MetaOptError):
    """A prediction was asked for so far outside a law's range that it would say nothing."""


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
        float | None,
        typer.Option(
            parser=amount, metavar="N", help="Tokens in a sequence: the batch is said in sequences too."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Predict however far outside the fitted range it is.")
    ] = False,
    extra: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE of a further coordinate, e.g. weight_decay=0.1 or schedule=cosine. "
            "[default: the largest runs']"
        ),
    ] = None,
) -> None:
    """Predict the best learning rate, batch and loss of a model, with intervals.

    Example: metaopt-hpo predict law.json --size 7B --tokens 1.4T
    """

    given, fitted = pairs("--extra", extra), read_law(law)
    for name, value in given.items():
        if isinstance(value, str) and name not in fitted.axes.levels:
            raise MetaOptError(f"--extra takes NAME=NUMBER, got {name}={value}")
    _show(fitted, size, tokens, batch, given, sequence_length=sequence_length, force=force)


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
        typer.echo(f"licence: {law.licence}\n{command_line(law.law.describe())}")
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
    within(law.domain, {"size": size, "tokens": tokens}, force=force)
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
    extra: Mapping[str, float | str] | None = None,
    *,
    sequence_length: float | None = None,
    force: bool = False,
) -> None:
    within(
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
    if found.weight_decay is not None:
        e = found.weight_decay
        interval = "" if found.weight_decay_from == "given" else f"   interval {e.low:.2g} to {e.high:.2g}"
        typer.echo(f"decay  {e.value:.3g}{interval}   decoupled; from {found.weight_decay_from}")
    say_warnings(found)


def say_warnings(found: Prediction) -> None:
    """What a law says against its own prediction, on standard error."""
    for warning in found.warnings:
        typer.echo(f"warning [{warning.code}] {command_line(warning.message)}", err=True)


FAR = 1e4
"""How many times outside the fitted range a prediction says nothing: four decades, where real plans span two."""


def within(domain: Mapping[str, tuple[float, float]], asked: Mapping[str, float], *, force: bool) -> None:
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
    try:
        size, tokens, lr = (amount(p) for p in text.split(","))
    except (ValueError, typer.BadParameter):
        raise MetaOptError(f"--anchor must be SIZE,TOKENS,LR, got {text!r}") from None
    return size, tokens, lr
