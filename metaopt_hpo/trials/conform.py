"""A foreign frame turned into a trial table's columns: names, units, types, duplicates and trial ids."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pandas as pd

from metaopt_hpo.trials import schema
from metaopt_hpo.trials.schema import CURVE_COLUMNS, Note, TableError

FACTORS = {"thousands": 1e3, "millions": 1e6, "billions": 1e9, "trillions": 1e12}


def objects(values: list[Any]) -> np.ndarray:
    """An array of objects, one a row; lists stay lists."""
    out = np.empty(len(values), dtype=object)
    for i, v in enumerate(values):
        out[i] = v
    return out


def _factor(name: str, unit: float | str, sequence_length: float | None) -> float:
    if isinstance(unit, str):
        if unit == "sequences":
            if sequence_length is None or not sequence_length > 0:
                raise ValueError(
                    f"units of {name!r} are sequences: pass sequence_length (tokens in a sequence)"
                )
            return float(sequence_length)
        if unit in FACTORS:
            return FACTORS[unit]
        raise ValueError(
            f"unit of {name!r} must be a number, 'sequences' or one of {sorted(FACTORS)}, got {unit!r}"
        )
    if not (math.isfinite(unit) and unit > 0):
        raise ValueError(f"unit of {name!r} must be a positive factor, got {unit!r}")
    return float(unit)


def conform(
    frame: pd.DataFrame,
    columns: Mapping[str, str | float],
    units: Mapping[str, float | str],
    sequence_length: float | None,
    notes: list[Note],
) -> pd.DataFrame:
    """The schema's columns from a foreign frame; no checks of values yet."""
    for source in (columns, units):
        unknown = [k for k in source if k not in schema.COLUMN_NAMES and k != "curve"]
        if unknown:
            raise ValueError(
                f"{unknown[0]!r} is no column of a trial table; there are {', '.join(schema.COLUMN_NAMES)}"
            )
    former = {old: new for old, new in schema.FORMER_NAMES.items() if new not in frame.columns}
    frame = frame.rename(columns=former)
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise TableError(f"column {twice[0]!r} stands twice in the table; rename or remove one")
    used: set[str] = set()
    out: dict[str, Any] = {}
    n = len(frame)
    for col in schema.COLUMNS:
        source_name = columns.get(col.name, col.name)
        if isinstance(source_name, (int, float)) and not isinstance(source_name, bool):
            values: pd.Series | None = pd.Series(np.full(n, float(source_name)), index=frame.index)
        elif source_name in frame.columns:
            values = frame[source_name]
            used.add(str(source_name))
        elif col.name in columns:
            raise TableError(
                f"column {source_name!r} (for {col.name!r}) is missing; the table has "
                f"{', '.join(map(str, frame.columns))}"
            )
        elif col.name in schema.REQUIRED:
            raise TableError(
                f"column {col.name!r} ({col.unit}) is missing; the table has "
                f"{', '.join(map(str, frame.columns))}; name it with columns={{{col.name!r}: …}}"
            )
        else:
            values = None
        out[col.name] = _convert(values, col, n, notes)
        unit = units.get(
            col.name, units.get(col.name.removeprefix("curve_"))
        )  # a curve counts as its run does
        if unit is not None:
            factor = _factor(col.name, unit, sequence_length)
            if col.kind == "curve":
                out[col.name] = objects([v and tuple(factor * x for x in v) for v in out[col.name]])
            else:
                out[col.name] = out[col.name] * factor
    result = pd.DataFrame(out, index=frame.index)
    extra = [c for c in frame.columns if str(c) not in used and c not in schema.COLUMN_NAMES]
    if extra:
        result["params"] = merge_params(result["params"], frame.loc[:, extra])
    return result


def _convert(values: pd.Series | None, col: schema.Column, n: int, notes: list[Note]) -> Any:
    if values is None:
        return (
            objects([col.default] * n) if col.kind in ("text", "params", "curve") else np.full(n, col.default)
        )
    if col.kind == "number":
        return schema.to_numbers(values, col.name, notes).to_numpy()
    if col.kind == "integer":
        numbers = schema.to_numbers(values, col.name, notes).fillna(0)
        if ((numbers % 1) != 0).any():
            raise TableError(f"column {col.name!r} must hold whole numbers")
        return numbers.astype("int64").to_numpy()
    if col.kind == "curve":
        return objects([_curve_values(v, col.name) for v in values])
    if col.kind == "params":
        return objects([_params_text(v) for v in values])
    return objects(
        [
            "" if v is None or v is pd.NA or (isinstance(v, float) and math.isnan(v)) else str(v)
            for v in values
        ]
    )


def _curve_values(value: Any, name: str) -> tuple[float, ...] | None:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as e:
            raise TableError(f"column {name!r} must hold lists of numbers, got {value[:40]!r}") from e
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise TableError(f"column {name!r} must hold lists of numbers, got {type(value).__name__}")
    return tuple(math.nan if v is None else float(v) for v in value)


def _params_text(value: Any) -> str:
    if isinstance(value, dict):
        return schema.params_to_json(value)
    if not isinstance(value, str) or not value:
        return "{}"
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as e:
        raise TableError(f"column 'params' must hold JSON objects, got {value[:40]!r}") from e
    if not isinstance(parsed, dict):
        raise TableError(f"column 'params' must hold JSON objects, got {value[:40]!r}")
    return value


def _stored(value: Any) -> Any:
    """A value of a column that is none of ours as JSON can hold it: lists as lists, dates and the like as text."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value if isinstance(value, (str, bool, int, float, list, dict, np.generic)) else str(value)


def merge_params(params: pd.Series, extra: pd.DataFrame) -> np.ndarray:
    """JSON texts with the columns of `extra` added; missing values are left out."""
    out: list[str] = []
    names = [str(c) for c in extra.columns]
    for text, values in zip(params, extra.itertuples(index=False, name=None), strict=True):
        merged = json.loads(text) if text != "{}" else {}
        for name, v in zip(names, values, strict=True):
            if v is None or v is pd.NA or v is pd.NaT or (isinstance(v, float) and math.isnan(v)):
                continue
            merged[name] = _stored(v)
        out.append(schema.params_to_json(merged))
    return objects(out)


def finish(frame: pd.DataFrame, notes: list[Note], *, unit_checks: bool = True) -> pd.DataFrame:
    """Checked frame with plain text columns, unique trials and a fresh index."""
    frame = frame.reset_index(drop=True)
    if len(frame) == 0:
        raise TableError("the table has no rows")
    schema.check(frame, notes)
    same = frame.drop(columns=list(CURVE_COLUMNS)).duplicated().to_numpy()
    if same.any():
        n = int(same.sum())
        notes.append(Note("duplicates", n, f"{n} rows repeat another row exactly and were left out"))
        frame = frame.loc[~same].reset_index(drop=True)
    named = frame["trial"].to_numpy() != ""
    clash = frame.loc[named].duplicated(["study", "trial"]).to_numpy()
    if clash.any():
        row = frame.loc[named].iloc[int(np.flatnonzero(clash)[0])]
        raise TableError(
            f"trial {row['trial']!r} of study {row['study']!r} appears {int(clash.sum()) + 1} times with "
            "different values; give each run its own trial id"
        )
    if not named.all():
        trial = frame["trial"].to_numpy().astype(object)
        width = len(str(len(frame)))
        taken = set(trial[named])
        for i in np.flatnonzero(~named):
            name = f"row-{i:0{width}d}"
            while name in taken:
                name += "'"
            trial[i] = name
        frame["trial"] = trial
    # plain lists: a frame's own look-ups would take most of the time of a long table
    curves, trials = frame["curve_tokens"].tolist(), frame["trial"].tolist()
    for name in CURVE_COLUMNS[1:]:
        for trial, tokens, values in zip(trials, curves, frame[name].tolist(), strict=True):
            if tokens is not None and values is not None and len(values) not in (0, len(tokens)):
                raise TableError(
                    f"trial {trial!r}: {name} has {len(values)} values for {len(tokens)} token counts"
                )
    return frame


def merge_notes(notes: list[Note]) -> list[Note]:
    """Notes of several chunks with one code and column as one note."""
    merged: dict[tuple[str, str], Note] = {}
    for note in notes:
        column = note.message.split("'")[1] if "'" in note.message else ""
        key = (note.code, column)
        if key in merged:
            count = merged[key].count + note.count
            text = note.message.replace(str(note.count), str(count), 1)
            merged[key] = Note(note.code, count, text)
        else:
            merged[key] = note
    return cast("list[Note]", list(merged.values()))
