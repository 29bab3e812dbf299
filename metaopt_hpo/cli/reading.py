"""How commands take a table and numbers: the options that say where its quantities are, and `3B` for three billion."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metaopt_hpo.cli.words import command_line
from metaopt_hpo.errors import MetaOptError, MetaOptWarning

if TYPE_CHECKING:
    from metaopt_hpo.scaling import Law
    from metaopt_hpo.scaling.base.sources import BaseLike
    from metaopt_hpo.trials.table import TrialTable

_AMOUNT = re.compile(r"(\d[\d_]*\.?\d*|\.\d+)(e[-+]?\d+)?\s*([kmbt]?)", re.IGNORECASE)
_SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_NEXT_PAIR = re.compile(r",(?=\s*[A-Za-z_]+=)")


def amount(text: str) -> float:
    """A count as people write it: 3B, 180M, 60_000, 1.4e12."""
    found = _AMOUNT.fullmatch(str(text).strip())
    value = float((found[1] + (found[2] or "")).replace("_", "")) * _SCALE[found[3].lower()] if found else 0.0
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"takes a positive number such as 3B, 180M or 1.4e12, got {text!r}")
    return value


QUIET = ("mapped", "derived", "reports", "taken-finished")
"""Remarks about a table that say how it was read; the others say that something may be wrong."""

Source = Annotated[
    str,
    typer.Argument(
        help="Trials: CSV, Parquet, JSON, an export or folder of another tool, or an Optuna storage's URL.",
        metavar="TABLE",
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        help="OURS=THEIRS for columns of other names, e.g. --map size=N,batch=bsz; a number stands for a constant.",
    ),
]
Units = Annotated[
    list[str] | None,
    typer.Option(
        "--unit",
        help="OURS=FACTOR, e.g. tokens=1e9, size=millions, tokens=per_parameter, or batch=sequences (with "
        "--sequence-length); 1 says that the numbers are right.",
    ),
]
SequenceLength = Annotated[
    float | None, typer.Option(parser=amount, metavar="N", help="Tokens in a sequence, e.g. 2048 or 2k.")
]
Wandb = Annotated[bool, typer.Option("--wandb", help="The same as --format wandb.", hidden=True)]
Format = Annotated[
    str | None, typer.Option("--format", help="Tool that wrote the export, where the path does not show it.")
]
Decimal = Annotated[
    str | None, typer.Option(help="comma or point: the sign before decimals, where the table leaves it open.")
]
TakeFinished = Annotated[
    bool,
    typer.Option(
        "--take-finished", help="Use runs that are marked as failed but reached their planned tokens."
    ),
]
Implausible = Annotated[
    bool,
    typer.Option("--allow-implausible", help="Warn about implausible numbers instead of refusing them."),
]


def read_table(
    source: str,
    columns: list[str] | None,
    units: list[str] | None,
    sequence_length: float | None,
    *,
    wandb: bool = False,
    format: str | None = None,
    decimal: str | None = None,
    take_finished: bool = False,
    implausible: bool = False,
) -> TrialTable:
    """The table at `source`; what is to be said about it goes to standard error."""
    from metaopt_hpo.trials.table import TrialTable

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetaOptWarning)  # said below, without a line of code
        table = TrialTable.read(
            source,
            pairs("--map", columns),
            units=pairs("--unit", units),
            sequence_length=sequence_length,
            decimal=decimal,
            take_finished=take_finished,
            implausible="warn" if implausible else "refuse",
            format="wandb" if wandb else format,
        )
    for note in table.notes:
        kind = "note" if note.code in QUIET else "warning"
        typer.echo(f"{kind} [{note.code}] {command_line(note.message)}", err=True)
    return table


def pairs(option: str, values: list[str] | None) -> dict[str, str | float]:
    """What an option that takes NAME=VALUE, several times or separated by commas, was given."""
    out: dict[str, str | float] = {}
    for text in (part for value in values or () for part in _NEXT_PAIR.split(value)):
        ours, equals, theirs = (x.strip() for x in text.partition("="))
        if not equals or not ours or not theirs:
            raise MetaOptError(f"{option} takes OURS=THEIRS, got {text!r}")
        if ours in out:
            raise MetaOptError(f"{option} names {ours!r} twice: {out[ours]} and {theirs}")
        try:
            out[ours] = float(theirs)
        except ValueError:
            out[ours] = theirs
    return out


def numbers(option: str, values: list[str] | None) -> dict[str, float]:
    """As `pairs`, for values that must be numbers."""
    given = pairs(option, values)
    for name, value in given.items():
        if isinstance(value, str):
            raise MetaOptError(f"{option} takes NAME=NUMBER, got {name}={value}")
    return {k: float(v) for k, v in given.items()}


def said(value: float) -> str:
    """A count as people say it: 180M, 2.5B, 65536."""
    for end, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if value >= scale:
            return f"{value / scale:.4g}{end}"
    return f"{value:.6g}"


def shown(items: list[Any], limit: int = 8) -> str:
    """The first of some items, and how many more there are."""
    more = f" … ({len(items)})" if len(items) > limit else ""
    return ", ".join(str(i) for i in items[:limit]) + more


Base = Annotated[
    list[str] | None,
    typer.Option(
        help="Runs of like models to borrow strength from: a table of ours, a law's JSON file, or a fitted law of "
        "the library; may be given several times."
    ),
]


def bases(sources: list[str] | None) -> list[BaseLike] | None:
    """What `--base` names, as `fit` takes it: laws' files, tables' files, or names of the library."""
    return [_base(source) for source in sources] if sources else None


def read_law(path: Path) -> Law:
    """The law in a file, as `predict` and its like take it.

    Raises:
        MetaOptError: it holds none; the message says which file, and what writes one.
    """
    from metaopt_hpo.scaling import Law
    from metaopt_hpo.scaling.storage import NotALaw

    try:
        return Law.from_json(path)
    except NotALaw as error:
        raise MetaOptError(
            f"{str(path)!r} is not a law: {error.reason}; if it is a table of runs, fit one: "
            f"metaopt-hpo fit {shlex.quote(str(path))} --out law.json"
        ) from error


def named(option: str, source: str) -> str:
    """The name of a law in the library, where `source` is no path.

    Raises:
        MetaOptError: it is neither.
    """
    from metaopt_hpo.scaling.library_files import names

    if source not in names():
        known = ", ".join(n for n in names() if n.startswith("fitted-"))
        raise MetaOptError(
            f"{option} {source}: there is no such file, and no law of that name in the library (fitted laws: {known})"
        )
    return source


def _base(source: str) -> BaseLike:
    from metaopt_hpo.scaling import Law
    from metaopt_hpo.trials.table import TrialTable

    path = Path(source)
    if not path.exists():
        return named("--base", source)
    return Law.from_json(path) if path.suffix == ".json" and _is_law(path) else TrialTable.read(path)


def _is_law(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as f:
        return "metaopt-hpo law" in f.read(64)
