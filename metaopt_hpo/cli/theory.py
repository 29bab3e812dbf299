"""The commands verify-rule and attribute of the command line; `metaopt_hpo.cli.app` registers them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metaopt_hpo.errors import MetaOptError


def verify_rule(
    rule: Annotated[str, typer.Argument(help='A scaling rule, e.g. "lr ~ B^0.5 D^-0.5, B ~ D^0.571".')],
    kind: Annotated[
        str, typer.Option(help="Problem: nonconvex, frank-wolfe, star-convex or power-law.")
    ] = "nonconvex",
    form: Annotated[
        str, typer.Option(help="Form of the bound: simplified, tight or kovalev.")
    ] = "simplified",
    noise_exponent: Annotated[
        float, typer.Option(help="q of noise (a/B)^q: 0.5 for finite variance, less for heavy tails.")
    ] = 0.5,
    source: Annotated[float | None, typer.Option(help="Source exponent s of a power-law problem.")] = None,
    capacity: Annotated[
        float | None, typer.Option(help="Capacity exponent r of a power-law problem.")
    ] = None,
    path: Annotated[
        str | None, typer.Option(help='Batch path where the rule names none, e.g. "B ~ D^0.5".')
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Write the check with its figure here, as HTML.")] = None,
) -> None:
    """Check a scaling rule against convergence bounds.

    "proved" is an exact linear program over exponents, under the assumptions printed with it; "checked" is a number
    that was computed.

    Example: metaopt-hpo verify-rule "lr ~ D^-0.32"
    """
    from metaopt_hpo.theory import LMOBound
    from metaopt_hpo.theory import verify_rule as verify

    options = {"q": noise_exponent, "kind": kind, "form": form, "source": source, "capacity": capacity}
    bound = LMOBound(1.0, 1.0, 1.0, **{k: v for k, v in options.items() if v is not None})  # type: ignore[arg-type]
    check = verify(rule, bound, path)
    for one in (check, *check.also):
        for quantity, value in one.rows():
            typer.echo(f"{quantity:<36} {value}")
        typer.echo()
    if page is not None:
        from metaopt_hpo.report.rule_page import rule_page

        _write(page, rule_page(check))


def attribute(
    tier: Annotated[
        int,
        typer.Option(
            min=0,
            max=3,
            help="0: quadratics and a regression (3 CPU minutes); 1: tiny language models (10); "
            "2: the same on a GPU; 3: through an engine.",
        ),
    ] = 0,
    out: Annotated[
        Path, typer.Option(help="Folder of grids; an interrupted run goes on where it stopped.")
    ] = Path("results/attribution"),
    engine: Annotated[str | None, typer.Option(help="Engine of tier 3, such as optuna.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Where it computes; default cuda for tier 2, else cpu.")
    ] = None,
) -> None:
    """Attribute the gap between published learning-rate laws and their bounds, by controlled experiment.

    Example: metaopt-hpo attribute --tier 0
    """
    from metaopt_hpo.atomic import replacing
    from metaopt_hpo.attribution import run_tier
    from metaopt_hpo.attribution.tables import write_tables
    from metaopt_hpo.report.attribution_page import attribution_page

    try:
        result = run_tier(tier, out=out, engine=engine, device=device, progress=_progress)
    except KeyboardInterrupt:
        typer.echo("interrupted; finished grids are kept, the same command goes on from there", err=True)
        raise typer.Exit(130) from None
    if result is None:  # only a time budget ends a tier early, and none is given here
        raise MetaOptError(f"tier {tier} did not finish; start the same command again")
    for name, frame in (
        ("levels", result.frame()),
        ("parts", result.parts_frame()),
        ("protocol", result.protocol_frame()),
        ("proxy", result.proxy_frame()),
    ):
        with replacing(out / f"attribution_tier{tier}_{name}.parquet") as temporary:
            frame.to_parquet(temporary, index=False)
    for row in (*result.rows(), *result.protocol_rows()):
        typer.echo("  ".join(f"{name} {value}" for name, value in row.items() if value))
    typer.echo(f"tables written to {write_tables(out)}")
    _write(out / f"tier{tier}.html", attribution_page(result))


def _progress(done: int, worlds: int) -> None:
    """One line a world on standard error, whether that is a terminal or not."""
    typer.echo(f"{done} of {worlds} worlds done", err=True)


def _write(path: Path, page: str) -> None:
    from metaopt_hpo.atomic import write_text

    write_text(path, page)
    typer.echo(f"page written to {path}")
