"""Runs that W&B logged offline: folders `offline-run-*` (or `run-*`) with a `.wandb` file, or one such file.

A `.wandb` file is a LevelDB log (blocks of 32 KiB, records with a checksum) of protobuf records; their types come from
W&B's own library, which has no reader for the log in Python any more.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metaopt_hpo.trials.nested import flat
from metaopt_hpo.trials.readers.base import Export, Reader, files_below, long_frame, need, one_frame
from metaopt_hpo.trials.schema import Note, TableError

MAGIC = b":W&B\xe1\xbe"
HEADER, BLOCK, RECORD = 7, 32768, struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def recognises(path: str) -> bool:
    """A folder with such runs, or one run's file."""
    return bool(files_below(path, "*.wandb", depth=4))


def read(path: str) -> Export:
    """The runs, one row a logged step."""
    pb = need("wandb.proto.wandb_internal_pb2", "wandb", "W&B's offline runs")
    notes: list[Note] = []
    seen: set[Path] = set()
    runs = []
    for file in files_below(path, "*.wandb", depth=4):
        if file.resolve() not in seen:  # `latest-run` links to one of them
            seen.add(file.resolve())
            runs.append(_run(file, pb, notes))
    frame = long_frame(runs)
    if frame.empty:
        raise TableError(f"{path!r} holds no runs")
    return Export(
        "W&B offline runs",
        one_frame(frame),
        settings=("config.",),
        notes=tuple(notes),
        engine="wandb",
        sparse=True,
    )


def _run(file: Path, pb: Any, notes: list[Note]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    config: dict[str, Any] = {}
    reports: list[dict[str, Any]] = []
    common: dict[str, Any] = {"run_id": file.stem.removeprefix("run-"), "state": "crashed"}
    for data in records(file, notes):
        record = pb.Record()
        try:
            record.ParseFromString(data)
        except Exception as e:
            raise TableError(f"{str(file)!r} holds a record that W&B's library cannot read: {e}") from e
        kind = record.WhichOneof("record_type")
        if kind == "run":
            common["run_id"] = record.run.run_id or common["run_id"]
            config |= _items(record.run.config.update)
        elif kind == "config":
            config |= _items(record.config.update)
        elif kind == "history":
            reports.append(flat(_items(record.history.item)))
        elif kind == "exit":
            common["state"] = "finished" if record.exit.exit_code == 0 else "crashed"
    common |= {f"config.{k}": v for k, v in flat(config).items() if isinstance(v, (int, float, str, bool))}
    told = [{k: v for k, v in r.items() if isinstance(v, (int, float)) or v == "NaN"} for r in reports]
    return common, [{k: float("nan") if v == "NaN" else v for k, v in r.items()} for r in told]


def _items(items: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for item in items:
        path = list(item.nested_key) or [item.key]
        try:
            value = json.loads(item.value_json)
        except (ValueError, RecursionError):
            continue
        place = out
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = value
    return out


def records(file: Path, notes: list[Note]) -> Iterator[bytes]:
    """The records of a LevelDB log; a damaged or cut-off end is said in `notes` and left out."""
    data = file.read_bytes()
    if not data.startswith(MAGIC):
        raise TableError(f"{str(file)!r} is no file of W&B's")
    at, parts = HEADER, b""
    while at + RECORD.size <= len(data):
        left = BLOCK - at % BLOCK
        if left < RECORD.size:
            at += left
            continue
        checksum, length, kind = RECORD.unpack_from(data, at)
        body = data[at + RECORD.size : at + RECORD.size + length]
        if kind == 0 and length == 0:
            return
        whole = len(body) == length and kind in (FULL, FIRST, MIDDLE, LAST)
        if not whole or zlib.crc32(body, zlib.crc32(bytes([kind]))) != checksum:
            notes.append(
                Note("damaged", 1, f"{str(file)!r} is damaged or cut off; what comes after was left out")
            )
            return
        at += RECORD.size + length
        parts = body if kind in (FULL, FIRST) else parts + body
        if kind in (FULL, LAST):
            yield parts


READER = Reader("wandb-offline", recognises, read)
