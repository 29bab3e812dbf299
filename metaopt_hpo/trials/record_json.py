"""A trial record as a JSON object that any store keeps, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, get_args, get_type_hints

from metaopt_hpo.trials.record import CURVE_FIELDS, Curve, TrialRecord
from metaopt_hpo.trials.schema import FORMER_NAMES, TableError

_TYPES = get_type_hints(TrialRecord)
NUMBERS = tuple(name for name, kind in _TYPES.items() if kind is float)
"""Fields of a record that hold a number."""
_WORDS = {name: get_args(_TYPES[name]) for name in ("state", "direction", "tuning")}


def plain(value: Any) -> Any:
    """`value` in types every storage keeps as they are: NumPy scalars and 0-d tensors become Python ones.

    SQLite and Journal refuse NumPy scalars and turn tuples into lists; the in-memory storage takes anything,
    so a script would break when it is given a database.
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    item = getattr(value, "item", None)
    if callable(item) and not isinstance(value, str | int | float | bool):
        return item()
    if isinstance(value, float):
        return float(value)  # np.float64 is a float, and still not a plain one
    return value


def record_to_json(record: TrialRecord) -> dict[str, Any]:
    """A record as a JSON object that every storage keeps: NaN and infinities, which JSON has not, as text."""
    values = asdict(record)
    return {k: _finite(plain(v)) for k, v in values.items() if v not in ("", None) and v != {}}


def record_from_json(data: Any, called: str) -> TrialRecord:
    """The record `record_to_json` wrote.

    Args:
        called: what a message calls it.

    Raises:
        TableError: it is no record of ours; the message names what is wrong.
    """
    known = {f.name for f in fields(TrialRecord)}
    if isinstance(data, dict):
        data = {FORMER_NAMES.get(k, k): v for k, v in data.items()}
    if not isinstance(data, dict) or not set(data) <= known:
        raise TableError(f"{called} is not a record of metaopt-hpo: {data!r:.80}")
    values = dict(data)
    try:
        for name in NUMBERS:
            if name in values:
                values[name] = float(values[name])
        if values.get("curve") is not None:
            values["curve"] = Curve(
                **{k: tuple(float(x) for x in values["curve"].get(k, ())) for k in CURVE_FIELDS}
            )
        record = TrialRecord(**values)
        _check_ranges(record)
        return record
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise TableError(f"{called} is damaged: {error}") from error


def _check_ranges(record: TrialRecord) -> None:
    """Raise ValueError where a field holds a number that no run has; types were checked before."""
    for name in ("size", "batch", "lr"):
        value = getattr(record, name)
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
    if not 0 <= record.tokens < math.inf or record.target_tokens <= 0:
        raise ValueError(
            f"tokens must be finite numbers >= 0, got {record.tokens!r} of {record.target_tokens!r}"
        )
    for name in ("state", "direction", "tuning"):
        if getattr(record, name) not in _WORDS[name]:
            raise ValueError(
                f"{name} must be one of {', '.join(map(repr, _WORDS[name]))}, got {getattr(record, name)!r}"
            )
    for name in ("strategy", "reason", "workload"):
        if not isinstance(getattr(record, name), str):
            raise ValueError(f"{name} must be a text, got {getattr(record, name)!r}")
    if not isinstance(record.params, dict):
        raise ValueError(f"params must be an object, got {record.params!r}")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
