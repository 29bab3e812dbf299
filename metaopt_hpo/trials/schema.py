"""Columns of a trial table: names, units, checks and the schema's version. No torch here."""

from __future__ import annotations

import dataclasses
import json
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


LONGEST = 500
"""Characters of an error about a table: a cell may hold a novel."""


class TableError(MetaOptError):
    """A table that cannot be read as trials; the message names the column, the rows and the remedy."""

    def __init__(self, message: str) -> None:
        text = " ".join(message.split())  # a column's own name may hold line ends
        super().__init__(
            text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
        )


class TableWarning(MetaOptWarning):
    """Something in a table was corrected or looks wrong; the message counts the rows."""


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


def rows_text(mask: np.ndarray) -> str:
    """How many rows a mask marks, and the first of them."""
    index = np.flatnonzero(mask)
    return f"{index.size} row{'s' if index.size > 1 else ''} (first: row {index[0]})"


def check(frame: pd.DataFrame, notes: list[Note]) -> None:
    """Check a complete frame in place: raises `TableError`, or corrects and adds to `notes`."""
    bad_state = ~frame["state"].isin(STATES).to_numpy()
    if bad_state.any():
        value = frame["state"].to_numpy()[np.flatnonzero(bad_state)[0]]
        raise TableError(
            f"column 'state' holds {value!r} in {rows_text(bad_state)}; allowed are {', '.join(STATES)}"
        )
    for name in ("size", "tokens", "batch", "lr"):
        v = frame[name].to_numpy()
        unfinished = frame["state"].isin([s for s in STATES if s != "complete"]).to_numpy()
        bad = ~(np.isfinite(v) & (v > 0))
        if name == "tokens":  # a run that ended before its first step saw none
            bad &= ~(unfinished & (v == 0))
        if bad.any():
            value = float(v[np.flatnonzero(bad)[0]])
            unit = f" ({UNITS[name]})" if UNITS[name] != "-" else ""
            raise TableError(
                f"column {name!r} must be positive and finite{unit}, got {value:g} in {rows_text(bad)}; correct or "
                "remove those rows"
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
            Note(
                "loss-not-finite", n, f"{rows_text(broken)} have a NaN or infinite loss and count as diverged"
            )
        )
    negative = np.isfinite(loss) & (loss <= 0) & (frame["direction"].to_numpy() == "minimize")
    if negative.any():
        notes.append(
            Note(
                "loss-not-positive",
                int(negative.sum()),
                f"{rows_text(negative)} have a loss that is not positive; laws cannot use them",
            )
        )
    direction = ~frame["direction"].isin(("minimize", "maximize")).to_numpy()
    if direction.any():
        raise TableError(f"column 'direction' must be minimize or maximize; {rows_text(direction)} differ")


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
