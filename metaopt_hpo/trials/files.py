"""Trial tables on disk: text and Parquet read in chunks, and files that appear whole or not at all."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from metaopt_hpo.atomic import WriteError, replacing
from metaopt_hpo.trials import schema
from metaopt_hpo.trials.schema import CURVE_COLUMNS, TableError
from metaopt_hpo.trials.values import objects

VERSION_KEY = b"metaopt_hpo.schema_version"
CHUNK_ROWS = 200_000
"""Rows of a file read at a time: bounds the memory of reading to the table itself."""


TEXT = (".csv", ".tsv", ".txt")
JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (*TEXT, *JSON_LINES, ".json", ".parquet", ".feather")
PACKED: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def suffix(path: Path) -> str:
    """A file's kind, without what says that it is packed."""
    name = path.name.lower()
    for end in (*PACKED, ".zip"):
        name = name.removesuffix(end)
    return Path(name).suffix


def chunks(path: Path, *, as_text: Collection[str] = ()) -> Iterator[pd.DataFrame]:
    """The rows of a file, `CHUNK_ROWS` at a time.

    Args:
        as_text: columns of a text file that are kept as they are written.

    Raises:
        TableError: the file is not what its name says; the message says why.
    """
    kind = suffix(path)
    try:
        if kind in TEXT:
            layout = text_layout(path)
            yield from pd.read_csv(
                path,
                sep=layout.separator,
                encoding=layout.encoding,
                skiprows=layout.skip,
                chunksize=CHUNK_ROWS,
                dtype=dict.fromkeys(as_text, str),
                index_col=0 if layout.row_names else False,
                skipinitialspace=True,
            )
        elif kind == ".parquet":
            with sound(path):
                yield from _parquet_chunks(path)
        elif kind == ".feather":
            with sound(path):
                yield pd.read_feather(path)
        elif kind in JSON_LINES:
            yield from pd.read_json(path, lines=True, chunksize=CHUNK_ROWS, dtype=False)
        elif kind == ".json":
            yield rows_of(load_json(path), path)
        else:
            raise TableError(
                f"cannot read {path.name!r}: known are {', '.join(SUFFIXES)}, packed or not, and folders of runs; save "
                "a spreadsheet as CSV"
            )
    except (
        pd.errors.ParserError,
        pd.errors.EmptyDataError,
        UnicodeDecodeError,
        ValueError,
        OSError,
        EOFError,
        IndexError,  # an archive of nothing
        OverflowError,  # a whole number that no float holds
        RecursionError,  # brackets in brackets
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        pa.ArrowException,
    ) as e:
        raise TableError(f"cannot read {str(path)!r} as a table: {(str(e).splitlines() or ['?'])[0]}") from e


@contextmanager
def readable(path: Any) -> Iterator[None]:
    """Say in one sentence that a file is cut short, damaged, nested too deeply or holds numbers beyond all floats."""
    try:
        yield
    except (
        EOFError,
        IndexError,
        OverflowError,
        RecursionError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
    ) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise TableError(f"cannot read {str(path)!r} as a table: {reason}") from e


@contextmanager
def sound(path: Path) -> Iterator[None]:
    """Say in one sentence that a binary file's description of itself is damaged: it raises whatever it likes."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, NotImplementedError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise TableError(f"cannot read {str(path)!r} as a table: it is damaged ({reason:.100})") from e


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, whether it is packed or not."""
    end = path.suffix.lower()
    if end == ".zip":
        with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as stream:
            yield stream
    else:
        with PACKED[end](path) if end in PACKED else path.open("rb") as stream:
            yield stream


def text_of(path: Path, size: int = -1) -> str:
    """A file's text, or the first `size` bytes of it."""
    with unpacked(path) as stream:
        return stream.read(size).decode("utf-8-sig", errors="strict" if size < 0 else "ignore")


def load_json(path: Path) -> Any:
    """What a JSON file holds, packed or not."""
    try:
        return json.loads(text_of(path))
    except RecursionError as e:
        raise TableError(f"{str(path)!r} is nested too deeply to be a table") from e


def rows_of(data: Any, path: Path) -> pd.DataFrame:
    """Rows of a JSON document: a list of objects, an object that holds one, or one list or object a column."""
    if isinstance(data, dict):
        lists = [
            v
            for k, v in data.items()
            if k in ("runs", "trials", "rows", "data", "results") and isinstance(v, list)
        ]
        if len(lists) == 1:
            data = lists[0]
        elif (
            len(data) > 1
            and all(isinstance(v, list) for v in data.values())
            and len({len(v) for v in data.values()}) == 1
        ):
            return pd.DataFrame(data)
        elif len(data) > 1 and all(isinstance(v, dict) for v in data.values()):
            return pd.DataFrame({k: pd.Series(v) for k, v in data.items()}).reset_index(drop=True)
    if not isinstance(data, list) or not data or not all(isinstance(r, dict) for r in data):
        raise TableError(f"{str(path)!r} must hold a list of objects, one a trial")
    return pd.json_normalize(data)


@dataclass(frozen=True)
class TextLayout:
    """How a text table is laid out: its separator, encoding, lines before the header, and whether rows have names."""

    separator: str
    encoding: str
    skip: int
    names: tuple[str, ...]
    row_names: bool

    @property
    def first_line(self) -> int:
        """Line of the first row, counted from 1."""
        return self.skip + 2


def text_layout(path: Path) -> TextLayout:
    """Find out how a text table is laid out.

    Raises:
        TableError: a name stands twice (pandas would rename the second one, and read the first), or rows have another
            number of fields than the header.
    """
    with unpacked(path) as stream:
        head = stream.read(1 << 18)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    else:
        encoding = "utf-8-sig"
        try:
            head[: head.rfind(b"\n") + 1 or None].decode("utf-8")
        except UnicodeDecodeError:
            encoding = "cp1252"  # what spreadsheets write that do not write UTF-8
    lines = head.decode(encoding, errors="replace").splitlines()
    skip = 0
    given = ""
    if lines and re.fullmatch(r"sep=.", lines[0].strip()):  # Excel's way to say it
        given, skip = lines[0].strip()[-1], 1
    while len(lines) > skip and not lines[skip].strip():
        skip += 1
    if len(lines) <= skip:
        raise TableError(f"the table {str(path)!r} has no rows")
    header = lines[skip]

    def fields(line: str, separator: str) -> list[str]:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])

    if given:
        separator = given
    elif suffix(path) == ".tsv":
        separator = "\t"
    else:
        separator = max(",;\t|", key=lambda s: len(fields(header, s)))
    names = [n.strip() for n in fields(header, separator)]
    twice = [n for i, n in enumerate(names) if n and n in names[:i]]
    if twice:
        raise TableError(f"column {twice[0]!r} stands twice in {str(path)!r}; rename or remove one")
    row_names = False
    for number, line in enumerate(lines[skip + 1 : skip + 20], skip + 2):
        if line.count('"') % 2 or not line.strip():
            break  # a field with a line break: leave it to the parser
        n = len(fields(line, separator))
        if (
            n == len(names) + 1
            and number == skip + 2
            and not re.search(r"\d,\d", line.replace(" ", "") if separator != "," else "")
        ):
            row_names = fields(line, separator)[0].strip('"') in ("0", "1")  # R's write.table
        if n > len(names) + row_names and any(fields(line, separator)[len(names) + row_names :]):
            raise TableError(
                f"line {number} of {str(path)!r} has {n} fields for {len(names)} names; numbers with a decimal comma "
                "need quotes, or another separator"
            )
    return TextLayout(separator, encoding, skip, tuple(names), row_names)


def _parquet_chunks(path: Path) -> Iterator[pd.DataFrame]:
    file = pq.ParquetFile(path, page_checksum_verification=True)
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
                pq.write_table(data, temporary, compression="zstd", write_page_checksum=True)
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
