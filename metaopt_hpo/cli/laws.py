"""The commands fit, predict, laws and replay of the command line; `metaopt_hpo.cli.app` registers them."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metaopt_hpo.errors import MetaOptError, MetaOptWarning

if TYPE_CHECKING:
    from metaopt_hpo.scaling import Law
    from metaopt_hpo.trials.table import TrialTable

Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        help="OURS=THEIRS for columns of other names, e.g. --map batch=bsz; a number stands for a constant.",
    ),
]
Units = Annotated[
    list[str] | None,
    typer.Option("--unit", help="OURS=FACTOR, e.g. tokens=1e9, or batch=sequences (with --sequence-length)."),
]
Wandb = Annotated[
    bool,
    typer.Option(
        "--wandb", help="The table is a Weights & Biases export: the runs table as CSV, or runs as JSON."
    ),
]
SequenceLength = Annotated[float | None, typer.Option(help="Tokens in a sequence.")]


def fit(
    table: Annotated[Path, typer.Argument(help="Trials as CSV, Parquet or JSON.")],
    columns: Columns = None,
    units: Units = None,
    sequence_length: SequenceLength = None,
    wandb: Wandb = False,
    out: Annotated[Path | None, typer.Option(help="Write the law here, as JSON.")] = None,
    use: Annotated[
        str,
        typer.Option(
            help="Whose lr counts: fixed (schedules), plateau (what adaptive runs settled on) or all."
        ),
    ] = "fixed",
    strategy: Annotated[str | None, typer.Option(help="Only trials of this strategy.")] = None,
    extra: Annotated[
        list[str] | None, typer.Option(help="A hyperparameter that moves the optimum too, e.g. weight_decay.")
    ] = None,
    prior: Annotated[
        str | None, typer.Option(help="A fitted law of the library, or a law's JSON file, to lean on.")
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
        bool, typer.Option(help="Fit although the table cannot bear it; the law then carries warnings.")
    ] = False,
    hold_out: Annotated[
        float | None,
        typer.Option(help="Fit sizes below this one only, and say how well the law foretells the others."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap behind the intervals.")] = 0,
) -> None:
    """Fit a law across sizes to a table of trials.

    The table needs columns size, tokens, batch, lr and loss.

    Example: metaopt-hpo fit trials.csv --map size=params --out law.json
    """
    from metaopt_hpo.scaling import Law, library
    from metaopt_hpo.scaling import fit as fit_table

    if use not in ("fixed", "plateau", "all"):
        raise MetaOptError(f"--use must be fixed, plateau or all, got {use!r}")
    trials = _read_table(table, columns, units, sequence_length, wandb=wandb)
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
        from metaopt_hpo.comparison.held_out import foretold

        typer.echo(f"\nsizes from {hold_out:g}, not fitted:\n{foretold(law, held)}")
    if out is not None:
        law.to_json(out)
        typer.echo(f"law written to {out}")
    if page is not None:
        from metaopt_hpo.report import law_figures

        figures = [("Loss against learning rate", law_figures.surface_slices(law, trials))]
        for what, label in (("lr", "learning rate"), ("batch", "batch")):
            if what == "lr" or law.surface.has_batch:
                figures += [
                    (
                        f"Where the optimal {label} moves with {axis}",
                        law_figures.optimum_against(law, trials, what, axis=axis),
                    )
                    for axis in law.axes.scale_names[: 1 if law.path is not None else 2]
                ]
        figures.append(("Residuals", law_figures.residuals(law, trials)))
        if held is not None:
            figures.append(("Calibration on the sizes held out", law_figures.calibration(law, held)))
        typer.echo(
            f"page written to {law_figures.law_page(f'Law fitted to {table.name}', law, figures, page)}"
        )


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
    """Trials below a size, and those from it on."""
    sizes = trials.frame["size"].to_numpy()
    large = sizes >= size
    if large.all() or not large.any():
        side = "below" if large.all() else "from"
        raise MetaOptError(
            f"--hold-out {size:g} leaves no trial {side} it: sizes are {sizes.min():g} to {sizes.max():g}"
        )
    return trials.select(where=~large), trials.select(where=large)


def predict(
    law: Annotated[Path, typer.Argument(help="A law written by `metaopt-hpo fit --out`.")],
    size: Annotated[float, typer.Option(help="Trainable non-embedding parameters.")],
    tokens: Annotated[float, typer.Option(help="Training tokens.")],
    batch: Annotated[
        float | None, typer.Option(help="Tokens per step, if it is given; else the best one is predicted.")
    ] = None,
    extra: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE of a further coordinate, e.g. weight_decay=0.1. [default: the largest runs']"
        ),
    ] = None,
) -> None:
    """Predict the best learning rate, batch and loss of a model, with intervals.

    Example: metaopt-hpo predict law.json --size 7e9 --tokens 1.4e12
    """
    from metaopt_hpo.scaling import Law

    given = _pairs("--extra", extra)
    texts = [k for k, v in given.items() if isinstance(v, str)]
    if texts:
        raise MetaOptError(f"--extra takes NAME=NUMBER, got {texts[0]}={given[texts[0]]}")
    _show(Law.from_json(law), size, tokens, batch, {k: float(v) for k, v in given.items()})


def laws(
    name: Annotated[
        str | None, typer.Argument(help="A law of the library; without one, all are listed.")
    ] = None,
    size: Annotated[float | None, typer.Option(help="Parameters of a model to predict for.")] = None,
    tokens: Annotated[float | None, typer.Option(help="Its training tokens.")] = None,
    batch: Annotated[float | None, typer.Option(help="Tokens per step, for laws that need it.")] = None,
    anchor: Annotated[
        str | None,
        typer.Option(
            help="SIZE,TOKENS,LR of a known optimum (SIZE,TOKENS,BATCH for a law of the batch), for laws that give "
            "exponents only."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a fitted law here, as JSON.")] = None,
) -> None:
    """List published and fitted laws, or ask one of them.

    Example: metaopt-hpo laws step-law --size 7e9 --tokens 1.4e12
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
            typer.echo(f"fitted on {axis} {low:.3g} … {high:.3g}")
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
        _show(law.law, size, tokens, batch)
        return
    if law.lr is not None:
        typer.echo(f"lr    {law.predict_lr(size, tokens, batch=batch, anchor=_anchor(anchor)):.4g}")
    if law.batch is not None and (law.lr is None or not math.isnan(law.batch.coefficient)):
        typer.echo(f"batch {law.predict_batch(size, tokens, anchor=_anchor(anchor)):.4g}")
    if law.loss:
        typer.echo(f"loss  {law.predict_loss(size, tokens):.4g}")


def replay(
    table: Annotated[Path, typer.Argument(help="Trials as CSV or Parquet.")],
    size: Annotated[float, typer.Option(help="Size of the target; one of the table's.")],
    tokens: Annotated[float, typer.Option(help="Tokens of the target; some of the table's at that size.")],
    columns: Columns = None,
    units: Units = None,
    sequence_length: SequenceLength = None,
    wandb: Wandb = False,
    methods: Annotated[str, typer.Option(help="Comma-separated.")] = "law,tpe,random,grid",
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions of each method.")] = 10,
    limit: Annotated[float, typer.Option(help="Target runs after which a method has failed.")] = 150.0,
    page: Annotated[Path | None, typer.Option(help="Write the curves here, as HTML.")] = None,
) -> None:
    """Replay search methods on a table of real runs and compare what each one spends.

    Example: metaopt-hpo replay runs.csv --size 4.3e8 --tokens 5e10
    """
    from metaopt_hpo.comparison.replay import replay as run
    from metaopt_hpo.comparison.table_objective import TableObjective

    for name, value in (("--size", size), ("--tokens", tokens)):
        if not 0 < value < math.inf:
            raise MetaOptError(f"{name} must be a positive, finite number, got {value:g}")
    objective = TableObjective(_read_table(table, columns, units, sequence_length, wandb=wandb))
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
        from metaopt_hpo.report.law_figures import replay_page

        write_text(page, replay_page(result, table.name))
        typer.echo(f"curves written to {page}")


def _show(
    law: Law, size: float, tokens: float, batch: float | None, extra: dict[str, float] | None = None
) -> None:
    found = law.predict(size=size, tokens=tokens, batch=batch, extra=extra)
    for name in ("lr", "batch", "loss"):
        e = getattr(found, name)
        typer.echo(f"{name:<6} {e.value:.4g}   {law.level:.0%} interval {e.low:.4g} … {e.high:.4g}")
    for warning in found.warnings:
        typer.echo(f"warning [{warning.code}] {warning.message}", err=True)


def _read_table(
    path: Path,
    columns: list[str] | None,
    units: list[str] | None,
    sequence_length: float | None,
    *,
    wandb: bool,
) -> TrialTable:
    from metaopt_hpo.trials.readers import read_wandb
    from metaopt_hpo.trials.table import TrialTable

    named, factors = _pairs("--map", columns), _pairs("--unit", units)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetaOptWarning)  # said below, without a line of code
        if wandb:
            logged = {k: str(named.get(k, k)).removeprefix("summary.") for k in ("tokens", "loss")}
            table = read_wandb(path, named, units=factors, sequence_length=sequence_length, history=logged)
        else:
            table = TrialTable.read(path, named, units=factors, sequence_length=sequence_length)
    for note in table.notes:
        typer.echo(f"warning [{note.code}] {note.message}", err=True)
    return table


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


def _pairs(option: str, values: list[str] | None) -> dict[str, str | float]:
    out: dict[str, str | float] = {}
    for text in values or ():
        ours, equals, theirs = text.partition("=")
        if not equals or not ours or not theirs:
            raise MetaOptError(f"{option} takes OURS=THEIRS, got {text!r}")
        try:
            out[ours] = float(theirs)
        except ValueError:
            out[ours] = theirs
    return out
