"""Trial records as the rows of a table's frame, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from metaopt_hpo.trials import schema
from metaopt_hpo.trials.record import CURVE_FIELDS, Curve, TrialRecord
from metaopt_hpo.trials.schema import CURVE_COLUMNS, TableError
from metaopt_hpo.trials.values import objects


def frame_of(records: Iterable[TrialRecord]) -> pd.DataFrame:
    """A frame with the schema's columns, one row a record.

    Raises:
        TableError: a field that is a number holds none.
    """
    rows = list(records)
    data: dict[str, Any] = {}
    for col in schema.COLUMNS:
        if col.kind == "curve":
            field = col.name.removeprefix("curve_")
            data[col.name] = objects([None if r.curve is None else getattr(r.curve, field) for r in rows])
        elif col.kind == "params":
            data[col.name] = objects([schema.params_to_json(r.params) for r in rows])
        elif col.kind == "number":
            data[col.name] = _numbers(rows, col.name, "float64")
        elif col.kind == "integer":
            data[col.name] = _numbers(rows, col.name, "int64")
        else:
            data[col.name] = objects([getattr(r, col.name) for r in rows])
    return pd.DataFrame(data)


def records_of(frame: pd.DataFrame) -> Iterator[TrialRecord]:
    """The rows of such a frame as records."""
    names = list(schema.COLUMN_NAMES)
    for values in frame[names].itertuples(index=False, name=None):
        row = dict(zip(names, values, strict=True))
        curve = None
        if row["curve_tokens"] is not None:
            curve = Curve(
                **{f: tuple(row[c] or ()) for f, c in zip(CURVE_FIELDS, CURVE_COLUMNS, strict=True)}
            )
        for c in CURVE_COLUMNS:
            del row[c]
        row["params"] = json.loads(row["params"])
        row["seed"] = int(row["seed"])
        yield TrialRecord(**row, curve=curve)


def _numbers(rows: Sequence[TrialRecord], name: str, kind: str) -> np.ndarray:
    """A field of every record as an array.

    Raises:
        TableError: one holds no such number.
    """
    values = [getattr(r, name) for r in rows]
    try:
        return np.array(values, dtype=kind)
    except (TypeError, ValueError, OverflowError):
        pass
    for r, value in zip(rows, values, strict=True):
        try:
            np.array(value, dtype=kind).item()
        except (TypeError, ValueError, OverflowError):
            raise TableError(f"{name} of trial {r.trial!r} must be a number, got {value!r:.60}") from None
    raise TableError(f"{name} must be a number in every record")
