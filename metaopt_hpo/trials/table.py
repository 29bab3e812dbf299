"""TrialTable: what every run left behind, as one validated table. Reads, writes, joins, selects, sums costs.

The table is the project's waist: laws, verdicts, comparisons and figures read only this. Costs are float64,
for 6·N·D passes int64 at the sizes that matter.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from metaopt_hpo.trials import schema
from metaopt_hpo.trials.record import CURVE_FIELDS, Curve, TrialRecord
from metaopt_hpo.trials.schema import CURVE_COLUMNS, Note, TableError

VERSION_KEY = b"metaopt_hpo.schema_version"
CHUNK_ROWS = 200_000
"""Rows of a text file read at a time: bounds the memory of reading to the table itself."""

FACTORS = {"thousands": 1e3, "millions": 1e6, "billions": 1e9, "trillions": 1e12}


class TrialTable:
    """An immutable table of trials with the columns of `TrialRecord`.

    Build one with `from_frame`, `from_records` or `read`. `frame` has one column per field of `TrialRecord`:
    numbers are float64, `params` is JSON text, a curve is the columns `curve_tokens`, `curve_loss`, … holding
    tuples of floats, or None where the run reported nothing between.

    Attributes:
        frame: the pandas DataFrame (do not write to it).
        notes: counted remarks made while reading (`Note(code, count, message)`), each also said as a warning.
    """

    __slots__ = ("frame", "notes")

    frame: pd.DataFrame
    notes: tuple[Note, ...]

    def __init__(self, frame: pd.DataFrame, notes: tuple[Note, ...] = ()) -> None:
        missing = [c for c in schema.COLUMN_NAMES if c not in frame.columns]
        if missing:
            raise TableError(
                f"columns {missing} are missing; build a table with from_frame, from_records or read"
            )
        self.frame = frame
        self.notes = notes

    # -- building -------------------------------------------------------------------------------------------

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        columns: Mapping[str, str | float] | None = None,
        *,
        units: Mapping[str, float | str] | None = None,
        sequence_length: float | None = None,
    ) -> TrialTable:
        """A table from a DataFrame with at least size, tokens, batch, lr and loss.

        Args:
            frame: one row a trial.
            columns: our name → the frame's name, or a number that every row shares (`{"batch": 32768}`).
            units: our name → factor to multiply by, or "sequences" (with `sequence_length`), "thousands",
                "millions", "billions", "trillions".
            sequence_length: tokens in a sequence.

        Columns of other names become hyperparameters (`params`). Rows with a NaN or infinite loss stay and
        count as diverged; exact duplicates are dropped; both are counted in `notes` and warned about.

        Raises:
            TableError: a column is missing, a value cannot be meant, or two rows of one trial contradict.
        """
        notes: list[Note] = []
        out = _conform(frame, columns or {}, units or {}, sequence_length, notes)
        out = _finish(out, notes)
        schema.issue(notes)
        return cls(out, tuple(notes))

    @classmethod
    def from_records(cls, records: Iterable[TrialRecord], *, warn: bool = True) -> TrialTable:
        """A table of these trials.

        Args:
            records: the trials.
            warn: say what `notes` count as warnings too. Threads pass False: warning filters belong to the whole
                process, and cannot be silenced in one thread alone.
        """
        rows = list(records)
        data: dict[str, Any] = {}
        for col in schema.COLUMNS:
            if col.kind == "curve":
                field = col.name.removeprefix("curve_")
                data[col.name] = _object([None if r.curve is None else getattr(r.curve, field) for r in rows])
            elif col.kind == "params":
                data[col.name] = _object([schema.params_to_json(r.params) for r in rows])
            elif col.kind == "number":
                data[col.name] = np.array([getattr(r, col.name) for r in rows], dtype=float)
            elif col.kind == "integer":
                data[col.name] = np.array([getattr(r, col.name) for r in rows], dtype="int64")
            else:
                data[col.name] = _object([getattr(r, col.name) for r in rows])
        notes: list[Note] = []
        frame = _finish(pd.DataFrame(data), notes)
        if warn:
            schema.issue(notes)
        return cls(frame, tuple(notes))

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        columns: Mapping[str, str | float] | None = None,
        *,
        units: Mapping[str, float | str] | None = None,
        sequence_length: float | None = None,
    ) -> TrialTable:
        """Read `.parquet`, `.csv`, `.csv.gz`, `.jsonl` or `.json`; arguments as `from_frame`.

        Text files stream in chunks. The schema's version in a Parquet file that `write` made is checked.
        """
        path = Path(path)
        if not path.is_file():
            raise TableError(f"there is no table at {str(path)!r}")
        notes: list[Note] = []
        parts: list[pd.DataFrame] = []
        offset = 0
        for chunk in _chunks(path):
            chunk.index = pd.RangeIndex(offset, offset + len(chunk))
            offset += len(chunk)
            parts.append(_conform(chunk, columns or {}, units or {}, sequence_length, notes))
        if not parts:
            raise TableError(f"the table {str(path)!r} has no rows")
        frame = _finish(pd.concat(parts, ignore_index=True), notes)
        notes = _merge(notes)
        schema.issue(notes)
        return cls(frame, tuple(notes))

    @classmethod
    def concat(cls, tables: Iterable[TrialTable]) -> TrialTable:
        """All trials of several tables; one that two tables hold alike is kept once (see `notes`)."""
        parts = list(tables)
        if not parts:
            raise ValueError("concat needs at least one table, got none")
        notes: list[Note] = []
        frame = _finish(pd.concat([t.frame for t in parts], ignore_index=True), notes, unit_checks=True)
        known = {n for t in parts for n in t.notes}
        return cls(frame, tuple(known | set(notes)))

    # -- using ----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.frame)

    def __repr__(self) -> str:
        f = self.frame
        cells = f.groupby(["size", "tokens"]).ngroups
        return f"TrialTable({len(f)} trials, {f['size'].nunique()} sizes, {cells} cells)"

    def records(self) -> list[TrialRecord]:
        """The trials as plain dataclasses."""
        return list(self._iter_records())

    def _iter_records(self) -> Iterator[TrialRecord]:
        names = list(schema.COLUMN_NAMES)
        for values in self.frame[names].itertuples(index=False, name=None):
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

    def select(
        self,
        where: Callable[[pd.DataFrame], Any] | Sequence[bool] | np.ndarray | None = None,
        **conditions: Any,
    ) -> TrialTable:
        """The trials that meet every condition.

        Args:
            where: a boolean mask, or a function from the frame to one.
            conditions: column = value, = list/tuple/set of values, or = function from the column to a mask.
        """
        mask = np.ones(len(self.frame), dtype=bool)
        if where is not None:
            got = np.asarray(where(self.frame) if callable(where) else where, dtype=bool)
            if got.shape != mask.shape:
                raise ValueError(
                    f"where must give {mask.size} booleans, one per trial, got shape {got.shape}"
                )
            mask &= got
        for name, wanted in conditions.items():
            if name not in schema.COLUMN_NAMES:
                raise ValueError(f"no column {name!r}; there are {', '.join(schema.COLUMN_NAMES)}")
            col = self.frame[name]
            if callable(wanted):
                mask &= np.asarray(wanted(col), dtype=bool)
            elif isinstance(wanted, (list, tuple, set, frozenset, np.ndarray)):
                mask &= col.isin(list(wanted)).to_numpy()
            else:
                mask &= (col == wanted).to_numpy()
        return TrialTable(self.frame.loc[mask].reset_index(drop=True), self.notes)

    def join(self, frame: pd.DataFrame, *, on: Sequence[str] = ("study", "trial")) -> TrialTable:
        """This table with what `frame` knows about the same trials.

        Columns of the schema fill values that are missing here; others become hyperparameters. Rows of
        `frame` without a partner are an error, so that no measurement is lost.
        """
        keys = list(on)
        absent = [k for k in keys if k not in frame.columns]
        if absent:
            raise TableError(f"cannot join: column {absent[0]!r} is missing in the other frame")
        if frame.duplicated(keys).any():
            raise TableError(f"cannot join: the other frame has several rows for one {tuple(keys)}")
        merged = self.frame[keys].merge(frame, on=keys, how="left", indicator=True)
        hit = (merged["_merge"] == "both").to_numpy()
        if int(hit.sum()) < len(frame):
            raise TableError(
                f"cannot join: {len(frame) - int(hit.sum())} rows of the other frame match no trial here"
            )
        out = self.frame.copy()
        extra: list[str] = []
        for name in merged.columns.drop([*keys, "_merge"]):
            if name in schema.COLUMN_NAMES:
                out[name] = out[name].where(out[name].notna() & (out[name] != ""), merged[name].to_numpy())
            else:
                extra.append(str(name))
        if extra:
            out["params"] = _merge_params(out["params"], merged.loc[:, extra])
        notes: list[Note] = []
        return TrialTable(_finish(out, notes), self.notes + tuple(notes))

    def costs(self) -> pd.Series:
        """Training FLOPs of each trial (float64): as recorded, else 6·N·D of the tokens it saw."""
        cost = self.frame["cost"]
        return cost.where(cost.notna(), 6.0 * self.frame["size"] * self.frame["tokens"]).astype("float64")

    def cost(self) -> float:
        """Training FLOPs of all trials together, failed, pruned and diverged ones included."""
        return math.fsum(self.costs().to_numpy())

    def params_frame(self) -> pd.DataFrame:
        """The hyperparameters as columns, one row a trial, NaN where a trial has none of that name."""
        return pd.DataFrame([json.loads(p) for p in self.frame["params"]], index=self.frame.index)

    # -- writing --------------------------------------------------------------------------------------------

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write `.parquet` (schema version inside) or `.csv`; the file appears whole or not at all."""
        path = Path(path)
        if path.suffix not in {".parquet", ".csv"}:
            raise ValueError(f"path must end in .parquet or .csv, got {str(path)!r}")
        tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            if path.suffix == ".parquet":
                data = pa.Table.from_pandas(_plain(self.frame), schema=_arrow_schema(), preserve_index=False)
                pq.write_table(data, tmp, compression="zstd")
            else:
                frame = self.frame.copy()
                for name in CURVE_COLUMNS:
                    frame[name] = [
                        None if v is None else json.dumps([float(x) for x in v]) for v in frame[name]
                    ]
                frame.to_csv(tmp, index=False, float_format="%.17g")
            os.replace(tmp, path)
        except OSError as e:
            tmp.unlink(missing_ok=True)
            raise TableError(f"cannot write the table to {str(path)!r}: {e.strerror or e}") from e
        return path


def _object(values: list[Any]) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    for i, v in enumerate(values):
        out[i] = v
    return out


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    out = frame.loc[:, list(schema.COLUMN_NAMES)].copy()
    for name in CURVE_COLUMNS:
        out[name] = _object([None if v is None else [float(x) for x in v] for v in out[name]])
    return out


def _arrow_schema() -> pa.Schema:
    kinds = {"number": pa.float64(), "integer": pa.int64(), "curve": pa.list_(pa.float64())}
    fields = []
    for c in schema.COLUMNS:
        meta = {b"unit": c.unit.encode()} if c.unit else None
        fields.append(pa.field(c.name, kinds.get(c.kind, pa.string()), metadata=meta))
    return pa.schema(fields, metadata={VERSION_KEY: str(schema.SCHEMA_VERSION).encode()})


def _chunks(path: Path) -> Iterator[pd.DataFrame]:
    name = path.name.lower()
    try:
        if name.endswith((".csv", ".csv.gz", ".tsv")):
            sep = "\t" if name.endswith(".tsv") else ","
            yield from pd.read_csv(path, sep=sep, chunksize=CHUNK_ROWS)
        elif name.endswith(".parquet"):
            yield from _parquet_chunks(path)
        elif name.endswith(".jsonl"):
            yield from pd.read_json(path, lines=True, chunksize=CHUNK_ROWS)
        elif name.endswith(".json"):
            with path.open(encoding="utf-8") as f:
                yield pd.json_normalize(json.load(f))
        else:
            raise TableError(
                f"cannot read {path.name!r}: known are .csv, .csv.gz, .tsv, .parquet, .jsonl and .json"
            )
    except (
        pd.errors.ParserError,
        pd.errors.EmptyDataError,
        UnicodeDecodeError,
        ValueError,
        pa.ArrowInvalid,
    ) as e:
        raise TableError(f"cannot read {str(path)!r} as a table: {str(e).splitlines()[0]}") from e


def _parquet_chunks(path: Path) -> Iterator[pd.DataFrame]:
    file = pq.ParquetFile(path)
    meta = file.schema_arrow.metadata or {}
    if VERSION_KEY in meta:
        version = meta[VERSION_KEY].decode(errors="replace")
        if not version.isdigit() or int(version) > schema.SCHEMA_VERSION:
            raise TableError(
                f"{str(path)!r} has table schema version {version}, this release reads up to "
                f"{schema.SCHEMA_VERSION}; upgrade metaopt-hpo"
            )
    for batch in file.iter_batches(CHUNK_ROWS):
        yield batch.to_pandas()


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


def _conform(
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
        if col.name in units:
            out[col.name] = out[col.name] * _factor(col.name, units[col.name], sequence_length)
    result = pd.DataFrame(out, index=frame.index)
    extra = [c for c in frame.columns if str(c) not in used and c not in schema.COLUMN_NAMES]
    if extra:
        result["params"] = _merge_params(result["params"], frame.loc[:, extra])
    return result


def _convert(values: pd.Series | None, col: schema.Column, n: int, notes: list[Note]) -> Any:
    if values is None:
        return (
            _object([col.default] * n) if col.kind in ("text", "params", "curve") else np.full(n, col.default)
        )
    if col.kind == "number":
        return schema.to_numbers(values, col.name, notes).to_numpy()
    if col.kind == "integer":
        numbers = schema.to_numbers(values, col.name, notes).fillna(0)
        if ((numbers % 1) != 0).any():
            raise TableError(f"column {col.name!r} must hold whole numbers")
        return numbers.astype("int64").to_numpy()
    if col.kind == "curve":
        return _object([_curve_values(v, col.name) for v in values])
    if col.kind == "params":
        return _object([_params_text(v) for v in values])
    return _object(
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


def _merge_params(params: pd.Series, extra: pd.DataFrame) -> np.ndarray:
    """JSON texts with the columns of `extra` added; missing values are left out."""
    out: list[str] = []
    names = [str(c) for c in extra.columns]
    for text, values in zip(params, extra.itertuples(index=False, name=None), strict=True):
        merged = json.loads(text) if text != "{}" else {}
        for name, v in zip(names, values, strict=True):
            if v is None or v is pd.NA or (isinstance(v, float) and math.isnan(v)):
                continue
            merged[name] = v
        out.append(schema.params_to_json(merged))
    return _object(out)


def _finish(frame: pd.DataFrame, notes: list[Note], *, unit_checks: bool = True) -> pd.DataFrame:
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
    curves = frame["curve_tokens"].to_numpy()
    for i in np.flatnonzero([c is not None for c in curves]):
        n = len(curves[i])
        for name in CURVE_COLUMNS[1:]:
            v: Any = frame.at[i, name]
            if v is not None and len(v) not in (0, n):
                raise TableError(
                    f"trial {frame.at[i, 'trial']!r}: {name} has {len(v)} values for {n} token counts"
                )
    return frame


def _merge(notes: list[Note]) -> list[Note]:
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
