"""Trial tables on disk: text and Parquet read in chunks, and files that appear whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from metaopt_hpo.atomic import WriteError, replacing
from metaopt_hpo.trials import schema
from metaopt_hpo.trials.conform import objects
from metaopt_hpo.trials.schema import CURVE_COLUMNS, TableError

VERSION_KEY = b"metaopt_hpo.schema_version"
CHUNK_ROWS = 200_000
"""Rows of a file read at a time: bounds the memory of reading to the table itself."""


def chunks(path: Path) -> Iterator[pd.DataFrame]:
    """The rows of a file, `CHUNK_ROWS` at a time."""
    name = path.name.lower()
    try:
        if name.endswith((".csv", ".csv.gz", ".tsv")):
            sep = "\t" if name.endswith(".tsv") else ","
            _check_header(path, sep)
            yield from pd.read_csv(path, sep=sep, chunksize=CHUNK_ROWS)
        elif name.endswith(".parquet"):
            yield from _parquet_chunks(path)
        elif name.endswith(".jsonl"):
            yield from pd.read_json(path, lines=True, chunksize=CHUNK_ROWS)
        elif name.endswith(".json"):
            with path.open(encoding="utf-8") as f:
                rows = json.load(f)
            if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
                raise TableError(f"{str(path)!r} must hold a list of objects, one a trial")
            yield pd.json_normalize(rows)
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


def _check_header(path: Path, sep: str) -> None:
    """Refuse a name that stands twice: pandas would rename the second one, and read the first."""
    names = pd.read_csv(path, sep=sep, nrows=1, header=None, dtype=str).iloc[0].dropna()
    twice = names[names.duplicated()]
    if len(twice):
        raise TableError(f"column {twice.iloc[0]!r} stands twice in {str(path)!r}; rename or remove one")


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


def write_frame(frame: pd.DataFrame, path: Path) -> Path:
    """Write a table's frame as `.parquet` (schema version inside) or `.csv`."""
    if path.suffix not in {".parquet", ".csv"}:
        raise ValueError(f"path must end in .parquet or .csv, got {str(path)!r}")
    try:
        with replacing(path) as temporary:
            if path.suffix == ".parquet":
                data = pa.Table.from_pandas(_plain(frame), schema=_arrow_schema(), preserve_index=False)
                pq.write_table(data, temporary, compression="zstd")
            else:
                text = frame.copy()
                for name in CURVE_COLUMNS:
                    text[name] = [
                        None if v is None else json.dumps([float(x) for x in v]) for v in text[name]
                    ]
                text.to_csv(temporary, index=False, float_format="%.17g")
    except WriteError as e:
        raise TableError(f"the table is not written: {e}") from e
    return path


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    out = frame.loc[:, list(schema.COLUMN_NAMES)].copy()
    for name in CURVE_COLUMNS:
        out[name] = objects([None if v is None else [float(x) for x in v] for v in out[name]])
    return out


def _arrow_schema() -> pa.Schema:
    kinds = {"number": pa.float64(), "integer": pa.int64(), "curve": pa.list_(pa.float64())}
    fields = []
    for c in schema.COLUMNS:
        meta = {b"unit": c.unit.encode()} if c.unit else None
        fields.append(pa.field(c.name, kinds.get(c.kind, pa.string()), metadata=meta))
    return pa.schema(fields, metadata={VERSION_KEY: str(schema.SCHEMA_VERSION).encode()})
