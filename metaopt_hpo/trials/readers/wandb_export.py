"""Exports of Weights & Biases: the runs table as CSV, the export guide's CSV of dicts, JSON of runs with histories."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from metaopt_hpo.trials import files
from metaopt_hpo.trials.nested import as_mapping, expand, flat
from metaopt_hpo.trials.readers.base import Export, Reader, long_frame, one_frame
from metaopt_hpo.trials.schema import TableError

RUN_TABLE = {"ID": "trial", "State": "state", "Runtime": "seconds"}
"""Columns of the runs table that W&B itself fills."""


def recognises(path: str) -> bool:
    """A CSV with W&B's own columns, or JSON whose runs have config and summary."""
    file = Path(path)
    if not file.is_file():
        return False
    try:
        if files.suffix(file) == ".csv":
            names = set(files.text_layout(file).names)
            return {"summary", "config"} <= names or ({"Name", "State"} <= names and "Runtime" in names)
        if files.suffix(file) in (".json", *files.JSON_LINES) and file.stat().st_size:
            head = files.text_of(file, 4096)
            return '"config"' in head and ('"summary' in head or '"history"' in head)
    except (TableError, OSError, UnicodeDecodeError, csv.Error, EOFError):
        return False
    return False


def read(path: str) -> Export:
    """The export at a path."""
    file = Path(path)
    if not file.is_file():
        raise TableError(f"there is no export at {path!r}")
    kind = files.suffix(file)
    if kind == ".csv":
        names = files.text_layout(file).names
        if {"summary", "config"} <= set(names):
            frame = pd.concat(list(files.chunks(file)), ignore_index=True)
            return Export(
                "W&B runs, one dict each of config and summary",
                one_frame(_of_dicts(frame)),
                settings=("config.",),
            )
        columns = {ours: theirs for theirs, ours in RUN_TABLE.items() if theirs in names}
        return Export(
            "W&B runs table",
            lambda as_text: files.chunks(file, as_text=as_text),
            columns,
            line=files.text_layout(file).first_line,
            engine="wandb",
        )
    if kind in (".json", *files.JSON_LINES):
        runs = _runs(file)
        frame = long_frame(_reports(run, i) for i, run in enumerate(runs))
        if frame.empty:
            raise TableError(f"the export {path!r} holds no runs")
        return Export(
            "W&B runs with their histories",
            one_frame(frame),
            settings=("config.",),
            engine="wandb",
            sparse=True,
        )
    raise TableError(f"cannot read {file.name!r}: a W&B export is .csv, .json or .jsonl")


def _of_dicts(frame: pd.DataFrame) -> pd.DataFrame:
    frame = expand(frame)
    # outcomes lose their prefix, so that they are found as a history's are; settings keep it
    taken = set(frame.columns)
    return frame.rename(
        columns={
            c: c.removeprefix("summary.")
            for c in frame.columns
            if str(c).startswith("summary.") and c.removeprefix("summary.") not in taken
        }
    )


def _runs(file: Path) -> list[dict[str, Any]]:
    try:
        if files.suffix(file) in files.JSON_LINES:
            data: Any = [json.loads(line) for line in files.text_of(file).splitlines() if line.strip()]
        else:
            data = files.load_json(file)
    except (ValueError, RecursionError, OSError, EOFError) as e:
        raise TableError(f"cannot read {str(file)!r} as JSON: {e}") from e
    if isinstance(data, dict):
        data = data.get("runs", [data])
    if not isinstance(data, list) or not all(isinstance(r, dict) for r in data):
        raise TableError(f"{str(file)!r} must hold a list of runs, each with config and summary")
    return data


def _reports(run: Mapping[str, Any], number: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    config = flat(as_mapping(run.get("config") or {}, "config", number))
    summary_text = run.get("summary") or run.get("summaryMetrics") or {}
    summary = flat(as_mapping(summary_text, "summary", number))
    name = run.get("id", run.get("name"))
    common = {f"config.{k}": v for k, v in config.items() if isinstance(v, (int, float, str, bool))}
    common |= {"run_id": str(number if name is None else name), "state": run.get("state", "finished")}
    points = [p for p in run.get("history") or [] if isinstance(p, Mapping)]
    rows = [{"_step": i} | flat(p) for i, p in enumerate(points)]
    last = max((float(r["_step"]) for r in rows), default=-1.0)
    end = {k: v for k, v in summary.items() if isinstance(v, (int, float, str, bool)) and k != "_step"}
    return common, [*rows, {"_step": last + 1, **end}] if end else rows


READER = Reader("wandb", recognises, read, asked=1)
