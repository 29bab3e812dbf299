"""Columns of a trial table: names, units, checks and the schema's version. No torch here."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from metaopt_hpo.errors import MetaOptError, MetaOptWarning
from metaopt_hpo.trials.record import CURVE_FIELDS, TrialRecord, TrialState

SCHEMA_VERSION = 1
"""Raised when a column changes its meaning; a new optional column does not raise it."""

REQUIRED = ("size", "tokens", "batch", "lr", "loss")
STATES = get_args(TrialState)
CURVE_COLUMNS = tuple(f"curve_{name}" for name in CURVE_FIELDS)

UNITS: dict[str, str] = {
    "size": "parameters",
    "tokens": "tokens",
    "batch": "tokens per step",
    "lr": "-",
    "loss": "nats per token",
    "initial_loss": "nats per token",
    "target_tokens": "tokens",
    "cost": "FLOPs",
    "seconds": "s",
    "joules": "J",
    "memory": "bytes",
    "grad_noise": "tokens",
    "found_lr": "-",
    "found_lr_spread": "-",
    "unique_tokens": "tokens",
}

IMPLAUSIBLE_STEPS = 1e7
"""Optimizer steps that no ordinary run takes; a median above it means a batch counted in sequences."""

MIXED_UNITS_FACTOR = 200.0
"""An empty gap this wide between the batches of one (size, tokens) cell means two units in one column."""

MIXED_UNITS_GAP = 50.0
"""So does one this wide where the cell's other batches stand closer together than `GRID_FACTOR`."""

GRID_FACTOR = 8.0

FEW_STEPS = 1e3
"""Runs with so many times fewer optimizer steps than the median run have tokens counted in sequences."""

MANY_STEPS = 1e6
"""Steps from which a run with `FEW_STEPS` times more of them than the median run has its batch in sequences."""

MANY_TOKENS = 1e6
"""Tokens a parameter that no run sees: its size is counted in millions or billions."""

FEW_TOKENS = 0.1
"""Tokens a parameter: a median below it means tokens and batch counted in sequences, or fine-tuning."""


class TableError(MetaOptError):
    """A table that cannot be read as trials; the message names the column, the rows and the remedy."""


class TableWarning(MetaOptWarning):
    """Something in a table was mended or looks wrong; the message counts the rows."""


class UnitsWarning(TableWarning):
    """A column looks as if it were counted in another unit (sequences for tokens)."""


@dataclass(frozen=True, slots=True)
class Note:
    """One counted remark about a table; `code` is stable, `message` is a sentence."""

    code: str
    count: int
    message: str


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the schema: its kind decides storage, its default fills rows that lack it."""

    name: str
    kind: Literal["number", "integer", "text", "params", "curve"]
    default: Any
    unit: str


def _columns() -> tuple[Column, ...]:
    out: list[Column] = []
    for f in dataclasses.fields(TrialRecord):
        if f.name == "curve":
            out += [Column(c, "curve", None, "") for c in CURVE_COLUMNS]
        elif f.name == "params":
            out.append(Column("params", "params", "{}", "JSON"))
        elif f.name == "seed":
            out.append(Column("seed", "integer", 0, "-"))
        elif f.type == "float":
            default = None if f.default is dataclasses.MISSING else f.default
            out.append(Column(f.name, "number", default, UNITS.get(f.name, "-")))
        else:
            out.append(Column(f.name, "text", f.default, ""))
    return tuple(out)


FORMER_NAMES = {"plateau_lr": "found_lr", "plateau_lr_spread": "found_lr_spread"}
"""Columns that tables of earlier versions hold under another name."""

COLUMNS = _columns()
COLUMN_NAMES = tuple(c.name for c in COLUMNS)

_SUFFIX = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_DIGITS = r"(?:[1-9]\d{0,2}(?:[,_]\d{3})+|\d+)"  # a comma groups thousands; "0,001" is refused, not read as 1
_NUMBER = re.compile(rf"([-+]?(?:{_DIGITS}(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?)\s*([KMGBT]?)", re.IGNORECASE)


def to_numbers(values: pd.Series, name: str, notes: list[Note]) -> pd.Series:
    """`values` as float64; texts such as "124M" or "1e9" are read and counted, others refused."""
    if pd.api.types.is_bool_dtype(values):
        raise TableError(f"column {name!r} holds true/false, expected numbers ({UNITS.get(name, '-')})")
    if pd.api.types.is_numeric_dtype(values):
        return values.astype("float64")

    def parse(v: object) -> float:
        if v is None or (isinstance(v, float) and np.isnan(v)) or v is pd.NA:
            return float("nan")
        if isinstance(v, (int, float, np.number)) and not isinstance(v, bool):
            return float(v)
        text = str(v).strip()
        if text.lower() in {"", "nan", "na", "none", "null"}:
            return float("nan")
        if text.lower().lstrip("+-") in {"inf", "infinity"}:
            return float("-inf") if text.startswith("-") else float("inf")
        m = _NUMBER.fullmatch(text)
        if m is None:
            raise TableError(f"column {name!r} holds {text!r}, expected a number ({UNITS.get(name, '-')})")
        return float(m.group(1).replace(",", "").replace("_", "")) * _SUFFIX[m.group(2).upper()]

    out = pd.Series([parse(v) for v in values], index=values.index, dtype="float64")
    texts = int(sum(isinstance(v, str) for v in values))
    if texts:
        message = f"{texts} values of column {name!r} were text and were read as numbers"
        notes.append(Note("text-numbers", texts, message))
    return out


def _rows(mask: np.ndarray) -> str:
    index = np.flatnonzero(mask)
    return f"{index.size} row{'s' if index.size > 1 else ''} (first: row {index[0]})"


def check(frame: pd.DataFrame, notes: list[Note]) -> None:
    """Check a complete frame in place: raises `TableError`, or mends and adds to `notes`."""
    bad_state = ~frame["state"].isin(STATES).to_numpy()
    if bad_state.any():
        value = frame["state"].to_numpy()[np.flatnonzero(bad_state)[0]]
        raise TableError(
            f"column 'state' holds {value!r} in {_rows(bad_state)}; allowed are {', '.join(STATES)}"
        )
    for name in ("size", "tokens", "batch", "lr"):
        v = frame[name].to_numpy()
        unfinished = frame["state"].isin([s for s in STATES if s != "complete"]).to_numpy()
        bad = ~(np.isfinite(v) & (v > 0))
        if name == "tokens":  # a run that ended before its first step saw none
            bad &= ~(unfinished & (v == 0))
        if bad.any():
            value = float(v[np.flatnonzero(bad)[0]])
            raise TableError(
                f"column {name!r} must be positive and finite ({UNITS[name]}), got {value:g} "
                f"in {_rows(bad)}; mend or remove those rows"
            )
    loss = frame["loss"].to_numpy()
    state = frame["state"].to_numpy().astype(object)
    begun = (state == "complete") | (
        frame["tokens"].to_numpy() > 0
    )  # a run that was refused may have no loss
    broken = ~np.isfinite(loss) & np.isin(state, ("complete", "stopped", "pruned")) & begun
    if broken.any():
        frame["state"] = pd.Series(np.where(broken, "diverged", state), index=frame.index, dtype=object)
        reason = frame["reason"].to_numpy().astype(object)
        frame["reason"] = np.where(broken & (reason == ""), "loss is not finite", reason)
        n = int(broken.sum())
        notes.append(
            Note("loss-not-finite", n, f"{_rows(broken)} have a NaN or infinite loss and count as diverged")
        )
    negative = np.isfinite(loss) & (loss <= 0) & (frame["direction"].to_numpy() == "minimize")
    if negative.any():
        notes.append(
            Note(
                "loss-not-positive",
                int(negative.sum()),
                f"{_rows(negative)} have a loss that is not positive; laws cannot use them",
            )
        )
    direction = ~frame["direction"].isin(("minimize", "maximize")).to_numpy()
    if direction.any():
        raise TableError(f"column 'direction' must be minimize or maximize; {_rows(direction)} differ")
    _check_units(frame, notes)


def _check_units(frame: pd.DataFrame, notes: list[Note]) -> None:
    tokens, batch = frame["tokens"].to_numpy(), frame["batch"].to_numpy()
    done = frame["state"].to_numpy() == "complete"
    if not done.any():
        return
    short = done & (tokens < batch)
    if short.any():
        notes.append(
            Note(
                "units-tokens",
                int(short.sum()),
                f"{_rows(short)} saw fewer tokens than one batch holds: tokens look as if counted in "
                "sequences (pass units={'tokens': 'sequences'} and sequence_length=…)",
            )
        )
    size = frame["size"].to_numpy()
    small = done & (tokens / size > MANY_TOKENS)
    if small.any():
        message = (
            f"{_rows(small)} saw more than {MANY_TOKENS:g} tokens a parameter: size looks as if counted in millions "
            "or billions (pass units={'size': 'millions'})"
        )
        notes.append(Note("units-size", int(small.sum()), message))
    steps = tokens / batch
    usual = float(np.median(steps[done]))
    if usual > IMPLAUSIBLE_STEPS:
        notes.append(
            Note(
                "units-batch",
                int((steps[done] > IMPLAUSIBLE_STEPS).sum()),
                f"runs would have taken {usual:.2g} optimizer steps: batch looks as if counted in "
                "sequences (pass units={'batch': 'sequences'} and sequence_length=…)",
            )
        )
        return
    few = done & (steps < usual / FEW_STEPS) & ~short
    if few.any():
        message = (
            f"{_rows(few)} took over {FEW_STEPS:g} times fewer optimizer steps than the median run ({usual:.2g}): "
            "their tokens look as if counted in sequences"
        )
        notes.append(Note("units-mixed", int(few.sum()), message))
    many = done & (steps > max(usual * FEW_STEPS, MANY_STEPS))
    if many.any():
        message = (
            f"{_rows(many)} took over {FEW_STEPS:g} times more optimizer steps than the median run ({usual:.2g}): "
            "their batch looks as if counted in sequences"
        )
        notes.append(Note("units-mixed", int(many.sum()), message))
    each = float(np.median(tokens[done] / size[done]))
    if each < FEW_TOKENS and not short.any():
        code, what = (
            ("units-tokens", "tokens look") if usual < 100 else ("units-both", "tokens and batch look")
        )
        message = (
            f"runs saw {each:.2g} tokens a parameter in {usual:.2g} steps: unless this is fine-tuning, {what} as if "
            "counted in sequences (pass units={…: 'sequences'} and sequence_length=…)"
        )
        notes.append(Note(code, int(done.sum()), message))
    jumps = _gaps(frame.loc[done, ["size", "tokens", "batch"]])
    if jumps:
        message = (
            f"in {jumps} cells of equal size and tokens the batches differ by a factor of "
            f"{MIXED_UNITS_GAP:g} or more with nothing between: some rows look as if counted in sequences"
        )
        notes.append(Note("units-mixed", jumps, message))


def _gaps(frame: pd.DataFrame) -> int:
    """Gaps between neighbouring batches of a cell that no grid has."""
    cells = frame.drop_duplicates().sort_values(["size", "tokens", "batch"])
    same = ((cells["size"].diff() == 0) & (cells["tokens"].diff() == 0)).to_numpy()
    ratio = (cells["batch"] / cells["batch"].shift()).to_numpy()
    wide = same & (ratio >= MIXED_UNITS_GAP)
    if not wide.any():
        return 0
    cell = np.cumsum(~same)
    close = np.bincount(cell, same & (ratio <= GRID_FACTOR)) > 0  # cells that have an ordinary spacing too
    far = np.bincount(cell, same & (ratio > GRID_FACTOR)) == 1  # and a single gap
    return int((wide & ((ratio >= MIXED_UNITS_FACTOR) | (close & far)[cell])).sum())


def issue(notes: list[Note], *, stacklevel: int = 3) -> None:
    """Say each note as a warning."""
    for note in notes:
        category = UnitsWarning if note.code.startswith("units-") else TableWarning
        warnings.warn(note.message, category, stacklevel=stacklevel)


def params_to_json(params: dict[str, Any]) -> str:
    """Hyperparameters as JSON text with sorted keys; NumPy scalars become plain ones."""

    def plain(v: Any) -> Any:
        if isinstance(v, np.generic):
            return v.item()
        raise TableError(
            f"a hyperparameter of type {type(v).__name__} cannot be stored; use a number, text or bool"
        )

    return json.dumps(params, sort_keys=True, default=plain)
