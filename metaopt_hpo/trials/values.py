"""Values of a table's columns that are no numbers: texts, curves and parameters, as a table keeps them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd

from metaopt_hpo.trials import schema
from metaopt_hpo.trials.schema import TableError


def objects(values: list[Any]) -> np.ndarray:
    """An array of objects, one a row; lists stay lists."""
    out = np.empty(len(values), dtype=object)
    for i, v in enumerate(values):
        out[i] = v
    return out


def text_of(value: Any) -> str:
    """A cell as text; a whole number without its ".0"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def curve_values(value: Any, name: str) -> tuple[float, ...] | None:
    """A cell of a curve's column, a list or its JSON; None where the run has none.

    Raises:
        TableError: it is no list.
    """
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as e:
            raise TableError(f"column {name!r} must hold lists of numbers, got {value[:40]!r}") from e
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise TableError(f"column {name!r} must hold lists of numbers, got {type(value).__name__}")
    return tuple(math.nan if v is None else float(v) for v in value)


def params_text(value: Any) -> str:
    """A cell of parameters, a dict or its JSON, as JSON.

    Raises:
        TableError: it is no object.
    """
    if isinstance(value, dict):
        return schema.params_to_json(value)
    if not isinstance(value, str) or not value:
        return "{}"
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError) as e:
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
