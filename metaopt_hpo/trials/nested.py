"""Columns of mappings, or of their text, as columns of their own: W&B's `config` and `summary`, nested metrics."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from metaopt_hpo.trials.schema import TableError

PARTS = ("config", "summary", "params", "hparams", "metrics", "data", "user_attrs", "summarymetrics", "tags")
"""Names of columns whose texts are read as mappings where they look like ones. Our own `params` stays JSON text."""

_NOT_FINITE = re.compile(r"(?<=[:\[,( ])(?:-?(?:nan|inf|NaN|Infinity))(?=\s*[,}\])])")


def expand(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of mappings replaced by one column an entry, named `column.entry`."""
    for name in list(frame.columns[~frame.columns.duplicated(keep=False)]):
        values = frame[name]
        if pd.api.types.is_numeric_dtype(values) or (name == "params" and "size" in frame.columns):
            continue
        first = next((v for v in values.tolist() if isinstance(v, (str, dict)) and v), None)
        if isinstance(first, str):
            if str(name).lower() not in PARTS or not first.lstrip().startswith("{"):
                continue
        elif not isinstance(first, dict):
            continue
        rows = [
            flat(as_mapping(v, str(name), row)) for row, v in zip(values.index, values.tolist(), strict=True)
        ]
        parts = pd.DataFrame(rows, index=frame.index)
        parts.columns = [f"{name}.{c}" for c in parts.columns]
        fresh = [c for c in parts.columns if c not in frame.columns]
        frame = pd.concat([frame.drop(columns=name), parts[fresh]], axis=1)
    return frame


def as_mapping(value: Any, column: str, row: int) -> Mapping[str, Any]:
    """A mapping from JSON or a Python literal; missing is empty.

    Raises:
        TableError: text that is neither.
    """
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, str) or not value.strip():
        return {}
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(_NOT_FINITE.sub("None", value))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found = None
    if not isinstance(found, dict):
        raise TableError(
            f"row {row} of column {column!r} holds {value[:40]!r}…, which is neither a JSON object nor a Python dict; "
            "write config and summary as JSON (json.dumps)"
        )
    return found


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots; W&B's `{"value": …}` wrappers and private keys are dropped."""
    out: dict[str, Any] = {}
    for key, v in value.items():
        name = f"{prefix}{key}"
        if str(key).startswith("_") and str(key) not in ("_step", "_runtime"):
            continue
        if isinstance(v, Mapping):
            if "value" in v and set(v) <= {"value", "desc"}:
                v = v["value"]
            if isinstance(v, Mapping):
                out |= flat(v, f"{name}.")
                continue
        out[name] = v
    return out
