"""The commands register and check: a prediction written down before the run, and scored after it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metaopt_hpo.cli.laws import say_warnings, within
from metaopt_hpo.cli.reading import amount, read_law


def register(
    law: Annotated[Path, typer.Argument(help="A law written by `metaopt-hpo fit --out`.")],
    size: Annotated[
        float,
        typer.Option(
            parser=amount, metavar="N", help="Trainable non-embedding parameters of the run to come, e.g. 7B."
        ),
    ],
    tokens: Annotated[
        float, typer.Option(parser=amount, metavar="N", help="Its training tokens, e.g. 1.4T.")
    ],
    out: Annotated[Path, typer.Option(help="Write the prediction here; a file that exists is not replaced.")],
    batch: Annotated[
        float | None, typer.Option(parser=amount, metavar="N", help="Tokens per step, if it is given.")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Write the prediction here too, as HTML.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Register however far outside the fitted range it is.")
    ] = False,
) -> None:
    """Record a prediction before the run: date, intervals, and the law and trials behind it.

    Example: metaopt-hpo register law.json --size 7B --tokens 1.4T --out 7b.json
    """
    from metaopt_hpo.scaling import preregistration

    fitted = read_law(law)
    within(
        {"size": fitted.domain.size, "tokens": fitted.domain.tokens},
        {"size": size, "tokens": tokens},
        force=force,
    )
    found = preregistration.register(fitted, size=size, tokens=tokens, batch=batch, path=out)
    typer.echo(
        f"loss {found.loss.value:.4f} ({found.level:.0%} interval {found.loss.low:.4f} to {found.loss.high:.4f})"
    )
    typer.echo(f"lr {found.lr.value:.4g}, batch {found.batch.value:.4g} tokens; written to {out}")
    say_warnings(fitted.predict(size, tokens, batch))
    if page is not None:
        from metaopt_hpo.report.prediction_page import prediction_page

        _write(page, prediction_page(found))
    typer.echo(f"after the run: metaopt-hpo check {out} --loss LOSS")


def check(
    prediction: Annotated[Path, typer.Argument(help="A file that `metaopt-hpo register` wrote.")],
    loss: Annotated[float, typer.Option(help="Held-out loss of the run, in the trials' unit.")],
    page: Annotated[Path | None, typer.Option(help="Write the score here too, as HTML.")] = None,
) -> None:
    """Score a registered prediction against the loss of the run.

    Example: metaopt-hpo check 7b.json --loss 1.934
    """
    from metaopt_hpo.scaling import preregistration

    score = preregistration.read(prediction).score(loss)
    typer.echo(str(score))
    if page is not None:
        from metaopt_hpo.report.prediction_page import score_page

        _write(page, score_page(score))


def _write(path: Path, page: str) -> None:
    from metaopt_hpo.atomic import write_text

    write_text(path, page)
    typer.echo(f"page written to {path}")
