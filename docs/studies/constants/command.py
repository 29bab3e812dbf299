"""Scales every constant by a half and by two, keeps what moved, and writes the page's table.

Each measurement is a process of its own, which imports the laws with the constant scaled. First one process runs all
measures as they are and notes which functions they call: a measure is made only of constants that it reads.
"""

from __future__ import annotations

import ast
import math
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from metaopt_hpo.atomic import replacing, write_text
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.markdown import markdown_table
from studies.constants.found import ROOM, Constant, constants, import_scaled, modules

FILE = Path(__file__).with_name("constants.parquet")
PAGE = Path(__file__).with_name("README.md")
TITLE = "## The table\n\n"
"""After it everything in the page is this command's."""

FACTORS = (0.5, 2.0)
CHOOSES = ("policy", "forecast")
"""Modules whose constants are judged by `measures.CHOICES`, where one of these reads them, the others by `FITS`."""

UNMEASURED = "not measured"

Reads = Mapping[str, set[tuple[str, str]]]
"""Measure → (module, name) of what it reads."""


def main(
    data: Annotated[Path | None, typer.Option(help="Folder of published tables (docs/studies/laws).")] = None,
    minutes: Annotated[float, typer.Option(help="Start no further measurement after so many minutes.")] = 60,
    only: Annotated[str, typer.Option(help="Measure only constants whose label contains this.")] = "",
    report: Annotated[bool, typer.Option("--report", help="Measure nothing: only write the page.")] = False,
    out: Annotated[Path, typer.Option(help="Kept results; what they hold is not measured again.")] = FILE,
    page: Annotated[Path, typer.Option(help="Page whose table is written.")] = PAGE,
) -> None:
    """Scale every constant of the laws by a half and by two, and write what moved into the page's table."""
    kept = pd.read_parquet(out) if out.exists() else pd.DataFrame(columns=["constant", "factor", "value"])
    if not report:
        if data is None:
            raise MetaOptError("give --data, the folder of published tables (docs/studies/laws), or --report")
        kept = sweep(data, kept, out, only=only, until=time.monotonic() + 60 * minutes)
    text = page.read_text(encoding="utf-8")
    found = constants()
    summary = counts(found, kept)
    write_text(page, f"{text[: text.index(TITLE)]}{TITLE}{summary}\n\n{table(found, kept)}")
    typer.echo(f"{summary} Written to {page}.")


def sweep(data: Path, kept: pd.DataFrame, out: Path, *, only: str, until: float) -> pd.DataFrame:
    """Measure what is missing of constants as they are, in the order of the modules; rows of others are dropped."""
    found = constants()
    held = {(c.label, c.value) for c in found}
    keys = zip(kept["constant"], kept["value"], strict=True)
    kept = kept[np.array([key in held for key in keys], dtype=bool)]
    done = set(zip(kept["constant"], kept["factor"], strict=True))
    missing = [(c, f) for c in found for f in FACTORS if only in c.label and (c.label, f) not in done]
    if not missing:
        return kept
    before, reads = _apart(_as_it_is, data)
    everywhere = _read_at_import()
    for constant, factor in sorted(missing, key=lambda cf: cf[0].label.startswith(CHOOSES)):
        if time.monotonic() > until:
            break
        names = wanted(constant, reads, everywhere)
        row: dict[str, Any] = {"constant": constant.label, "factor": factor, "value": constant.value}
        row |= {"measures": ", ".join(names), "failed": ""}
        try:
            after = _apart(_as_scaled, constant.module, constant.name, factor, names, data)
            row |= {k: after[k] - before[k] for k in after}
        except MeasureFailed as error:
            row["failed"] = str(error)
        kept = pd.concat([kept, pd.DataFrame([row])], ignore_index=True)
        with replacing(out) as temporary:
            kept.to_parquet(temporary, index=False)
    return kept


def wanted(constant: Constant, reads: Reads, everywhere: set[tuple[str, str]]) -> list[str]:
    """Names of the measures that judge a constant."""
    from studies.constants.measures import CHOICES, FITS

    key = (constant.module, constant.name)
    fits, choices = ([m for m in group if key in reads[m] or key in everywhere] for group in (FITS, CHOICES))
    return choices or fits if constant.label.startswith(CHOOSES) else fits or choices


# -- the table ------------------------------------------------------------------------------------------------


def table(found: Sequence[Constant], kept: pd.DataFrame) -> str:
    """Markdown: each constant's value, source, and what halving and doubling it move."""
    effects = _effects(found, kept)
    head = ["constant", "value", "what it is, and where from", "halved", "doubled"]
    rows = [(f"`{c.label}`", c.value, c.source, *effects[c.label]) for c in found]
    return markdown_table(head, rows) + "\n"


def counts(found: Sequence[Constant], kept: pd.DataFrame) -> str:
    """How many constants there are, and how many move something."""
    effects = _effects(found, kept).values()
    none = sum(all(t.startswith(UNMEASURED) for t in texts) for texts in effects)
    still = sum(set(texts) == {"nothing"} for texts in effects)
    return (
        f"{len(found)} constants: {len(found) - none} are measured, of which {still} move nothing either way; "
        f"{none} are not."
    )


def _effects(found: Sequence[Constant], kept: pd.DataFrame) -> dict[str, list[str]]:
    """By constant, what halving and what doubling it move, in words."""
    rows = {(r["constant"], r["value"], r["factor"]): r for r in kept.to_dict("records")}
    return {c.label: [moved(rows.get((c.label, c.value, f))) for f in FACTORS] for c in found}


def moved(row: Mapping[Any, Any] | None) -> str:
    """A row of the kept results in words."""
    from studies.constants.measures import UNITS

    if row is None:
        return f"{UNMEASURED} yet: new, or of another value since"
    if row["failed"]:
        return f"fails ({row['failed']})"
    if not row["measures"]:
        return f"{UNMEASURED}: no measure reads it"
    texts = []
    for key, unit in UNITS.items():
        change = float(row.get(key, math.nan))
        if math.isfinite(change) and abs(change) > unit.least:
            texts.append(f"{change:+.3g} {unit.words}".replace("-", "−", 1))
    return ", ".join(texts) or "nothing"


# -- a measurement is a process -------------------------------------------------------------------------------


class MeasureFailed(MetaOptError):
    """A measurement raised; the message is the exception's name."""


def _apart(work: Callable[..., Any], *args: Any) -> Any:
    """What a function gives in a process of its own."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, work, args))
    process.start()
    theirs.close()
    try:
        good, result = ours.recv()
    except EOFError:
        good, result = False, "the process ended"
    process.join()
    if not good:
        raise MeasureFailed(result)
    return result


def _send(pipe: Any, work: Callable[..., Any], args: Sequence[Any]) -> None:
    warnings.simplefilter("ignore")
    try:
        pipe.send((True, work(*args)))
    except Exception as error:
        pipe.send((False, type(error).__name__))


def _as_scaled(module: str, name: str, factor: float, names: Sequence[str], data: Path) -> dict[str, float]:
    import_scaled(module, name, factor)
    measures = import_module("studies.constants.measures")
    out: dict[str, float] = {}
    for measure in names:
        out |= {**measures.FITS, **measures.CHOICES}[measure](data, 0)
    return out


def _as_it_is(data: Path) -> tuple[dict[str, float], dict[str, set[tuple[str, str]]]]:
    """What the measures give, and which constants the functions they call name."""
    from studies.constants.measures import CHOICES, FITS

    holders = {m.__file__: m.__name__ for m in modules()}
    origin = {(m, alias): key for m, alias, key in _imported()}
    values: dict[str, float] = {}
    reads: dict[str, set[tuple[str, str]]] = {}
    for name, measure in {**FITS, **CHOICES}.items():
        seen: set[tuple[str, str]] = set()

        def look(frame: FrameType, event: str, _: Any, seen: set[tuple[str, str]] = seen) -> None:
            code = frame.f_code
            if event == "call" and code.co_filename in holders and code.co_name != "<module>":
                seen |= {(holders[code.co_filename], n) for n in code.co_names if n.isupper()}

        sys.setprofile(look)
        try:
            values |= measure(data, 0)
        finally:
            sys.setprofile(None)
        reads[name] = {origin.get(key, key) for key in seen}
    return values, reads


def _imported() -> list[tuple[str, str, tuple[str, str]]]:
    """(module, its name there, (module, name) where it is assigned) of every constant that one takes from another."""
    out = []
    for module in modules():
        assert module.__file__ is not None
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(ROOM):
                out += [(module.__name__, a.asname or a.name, (str(node.module), a.name)) for a in node.names]
    return out


def _read_at_import() -> set[tuple[str, str]]:
    """(module, name) of constants that others are made of, or that are defaults of arguments and fields."""
    origin = {(m, alias): key for m, alias, key in _imported()}
    out = set()
    for module in modules():
        assert module.__file__ is not None
        for node in _at_import(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id.isupper():
                key = (module.__name__, node.id)
                out.add(origin.get(key, key))
    return out


def _at_import(node: ast.AST) -> list[ast.AST]:
    """A module's nodes without the bodies of its functions."""
    inside = [
        child
        for child in ast.iter_child_nodes(node)
        if not (
            isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and child in _bodies(node)
        )
    ]
    return [*inside, *(n for child in inside for n in _at_import(child))]


def _bodies(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> list[Any]:
    return [node.body] if isinstance(node, ast.Lambda) else node.body
