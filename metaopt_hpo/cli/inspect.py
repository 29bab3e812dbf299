"""The command inspect: what a table is, what was found in it, what is missing, and the command that would fit it."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

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
    pairs,
    said,
    shown,
)
from metaopt_hpo.cli.words import command_line
from metaopt_hpo.errors import MetaOptError, MetaOptWarning

if TYPE_CHECKING:
    import pandas as pd

    from metaopt_hpo.trials.table import TrialTable


def inspect(
    table: Source,
    columns: Columns = None,
    units: Units = None,
    sequence_length: SequenceLength = None,
    format: Format = None,
    decimal: Decimal = None,
    take_finished: TakeFinished = False,
    implausible: Implausible = False,
) -> None:
    """Say what a table or export is, which column holds what, what is missing, and how to fit it.

    Exits with 0 where the table can be read as it stands, with 1 where something is missing.

    Example: metaopt-hpo inspect runs.csv
    """
    from metaopt_hpo.trials import naming
    from metaopt_hpo.trials.conform import Options
    from metaopt_hpo.trials.exports import open_export
    from metaopt_hpo.trials.nested import expand
    from metaopt_hpo.trials.numbers import decimal_mark, unit_of
    from metaopt_hpo.trials.schema import REQUIRED, TableError
    from metaopt_hpo.trials.table import TrialTable

    given, factors = pairs("--map", columns), pairs("--unit", units)
    export = open_export(table, format=format)
    frame = expand(next(iter(export.frames(()))))
    known = [str(c) for c in frame.columns]
    typer.echo(f"{table}: {export.title}")
    typer.echo(f"columns: {shown(known, 40)}\n")
    names = naming.resolve(known, {**export.columns, **given}, counted=naming.counts_params(frame))
    for quantity in (*REQUIRED, *(q for q in (*naming.DERIVED, *naming.OPTIONAL) if q in names.found)):
        source = names.source(quantity)
        if isinstance(source, str):
            typer.echo(f"  {quantity:<14} {source:<28} {_range(frame[source])}")
        elif source is not None:
            typer.echo(f"  {quantity:<14} {source:g}, for every run")
        elif quantity in names.missing:
            typer.echo(f"  {quantity:<14} missing{unit_of(quantity)}")
        else:
            typer.echo(f"  {quantity:<14} from {'steps and batch' if 'steps' in names.found else 'epochs'}")
    suggested = _suggestions(names, known)
    options = Options(
        given,
        factors,
        sequence_length,
        decimal_mark(decimal),
        take_finished,
        "warn" if implausible else "refuse",
    )
    kept = _kept(columns, units, sequence_length, format, decimal, take_finished, implausible)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MetaOptWarning)
            read = TrialTable._from_reading(export.reading(options))
    except (TableError, ValueError) as error:
        typer.echo(f"\nnot readable yet: {command_line(str(error))}")
        if names.missing:
            typer.echo("\nto look again, with the names and units that may be meant:")
            more = _map(suggested, names.missing) + _units(suggested, factors, frame)
            typer.echo(f"  metaopt-hpo inspect {shlex.quote(table)}{kept}{more}")
        raise typer.Exit(1) from None
    typer.echo("")
    for note in read.notes:
        typer.echo(f"note [{note.code}] {command_line(note.message)}")
    typer.echo(_summary(read))
    typer.echo("\nto fit it:")
    typer.echo(f"  metaopt-hpo fit {shlex.quote(table)}{kept} --out law.json")


def _range(values: pd.Series) -> str:
    import pandas as pd

    filled = values.dropna()
    if pd.api.types.is_numeric_dtype(filled) and len(filled):
        return f"{filled.min():.6g} to {filled.max():.6g}, {filled.nunique()} different"
    return f"{shown(sorted({str(v) for v in filled}), 4)}"


def _suggestions(names: object, known: list[str]) -> Mapping[str, str]:
    from metaopt_hpo.trials import naming, quantities

    assert isinstance(names, naming.Names)
    taken = set(names.found.values())
    out: dict[str, str] = {}
    for quantity in names.missing:
        near = [n for n in quantities.did_you_mean(quantity, known, quantity) if n not in taken]
        if near:
            out[quantity] = near[0]
            taken.add(near[0])
    return out


def _map(suggested: Mapping[str, str], missing: tuple[str, ...]) -> str:
    return " --map " + shlex.quote(",".join(f"{m}={suggested.get(m, 'COLUMN_OR_NUMBER')}" for m in missing))


SEQUENCE_LENGTHS = (
    "seq_len",
    "sequence_length",
    "seq_length",
    "context_length",
    "block_size",
    "n_ctx",
    "max_length",
)


def _units(suggested: Mapping[str, str], given: Mapping[str, object], frame: pd.DataFrame) -> str:
    """Units that the suggested columns' names suggest, and the sequence's length where a column holds it."""
    from metaopt_hpo.trials import quantities

    hints = {q: unit for q, c in suggested.items() if (unit := quantities.unit_hint(c)) and q not in given}
    if not hints:
        return ""
    text = " --unit " + ",".join(f"{q}={unit}" for q, unit in hints.items())
    if "sequences" not in hints.values():
        return text
    lengths = [
        c for c in frame.columns if quantities.parts(c)[1] in SEQUENCE_LENGTHS and frame[c].nunique() == 1
    ]
    return f"{text} --sequence-length {frame[lengths[0]].iloc[0] if lengths else 'TOKENS_IN_A_SEQUENCE'}"


def _kept(
    columns: list[str] | None,
    units: list[str] | None,
    sequence_length: float | None,
    format: str | None,
    decimal: str | None,
    take_finished: bool,
    implausible: bool,
) -> str:
    """The options that were given, as they go on to `fit`."""
    words: list[str] = []
    for option, values in (("--map", columns), ("--unit", units)):
        words += [w for v in values or () for w in (option, shlex.quote(v))]
    for option, value in (
        ("--sequence-length", sequence_length and f"{sequence_length:g}"),
        ("--format", format),
        ("--decimal", decimal),
    ):
        words += [option, str(value)] if value else []
    words += ["--take-finished"] if take_finished else []
    words += ["--allow-implausible"] if implausible else []
    return "".join(f" {w}" for w in words)


def _summary(table: TrialTable) -> str:
    frame = table.frame
    sizes = sorted(frame["size"].unique())
    states = ", ".join(f"{n} {state}" for state, n in frame["state"].value_counts().items())
    curves = int(frame["curve_tokens"].notna().sum())
    text = f"{len(table)} runs ({states}), {len(sizes)} sizes: {shown([said(s) for s in sizes])}"
    text += (
        f"\nlr {frame['lr'].min():.3g} to {frame['lr'].max():.3g}; {curves} runs have a curve"
        if len(table)
        else ""
    )
    if len(sizes) < 3:
        text += "\na law across sizes needs three of them; metaopt-hpo fit takes fewer with --prior or --allow-weak"
    return text


def is_export(path: Path) -> bool:
    """Whether a folder holds runs that a reader knows."""
    try:
        from metaopt_hpo.trials.exports import open_export

        open_export(path)
    except MetaOptError:
        return False
    return True
