"""Ray Tune's own files: an experiment's folder, or a trial's `result.json` or `progress.csv` beside its `params.json`.

Metrics may be missing, null or nested. No pickle is opened. A journal of the Ray integration says more; its own reader
is asked first.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metaopt_hpo.trials import files
from metaopt_hpo.trials.logbook_file import JOURNAL
from metaopt_hpo.trials.quantities import flatten
from metaopt_hpo.trials.readers.base import Export, Reader, files_below, long_frame, one_frame, run_name
from metaopt_hpo.trials.schema import Note, TableError

RESULTS = ("result.json", "progress.csv")


def recognises(path: str) -> bool:
    """A folder with trials of Tune, or one trial's file."""
    given = Path(path)
    if given.is_file():
        return given.name == "result.json" or (
            given.name == "progress.csv" and (given.parent / "params.json").is_file()
        )
    if (given / JOURNAL).is_file():
        return False  # an experiment with a journal is left to the integration's own reader
    return any((p.parent / n).is_file() for p in files_below(path, "params.json", depth=3) for n in RESULTS)


def read(path: str) -> Export:
    """The trials' results, one row a report."""
    given = Path(path)
    if given.is_file():
        trials = [given.parent]
    else:
        trials = [p.parent for p in files_below(path, "params.json", depth=3)]
    notes: list[Note] = []
    frame = long_frame(_trial(t, path, given, notes) for t in trials)
    if frame.empty:
        raise TableError(f"no trial of {path!r} has results")
    return Export(
        "Ray Tune experiment",
        one_frame(frame),
        settings=("config/",),
        notes=tuple(notes),
        engine="ray",
        sparse=True,
    )


def _trial(
    folder: Path, root: str, given: Path, notes: list[Note]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    params = folder / "params.json"
    config = _object(params.read_text(encoding="utf-8", errors="replace")) if params.is_file() else None
    rows = list(_rows(given if given.is_file() else folder, notes))
    if config is None:
        config = next((r["config"] for r in rows if isinstance(r.get("config"), dict)), {})
    common = {f"config/{k}": v for k, v in flatten(config).items() if isinstance(v, (int, float, str, bool))}
    common["run_id"] = (
        str(rows[0]["trial_id"]) if rows and rows[0].get("trial_id") else run_name(folder / "x", root)
    )
    if (folder / "error.txt").is_file():
        common["state"] = "failed"
    told = [
        {
            k: v
            for k, v in flatten(r).items()
            if not k.startswith("config/") and isinstance(v, (int, float, bool))
        }
        for r in rows
    ]
    return common, told


def _rows(source: Path, notes: list[Note]) -> Iterator[dict[str, Any]]:
    file = source if source.is_file() else source / "result.json"
    if file.is_file() and file.suffix == ".json":
        damaged = 0
        for line in files.text_of(file).splitlines():
            row = _object(line)
            damaged += row is None and bool(line.strip())
            if row is not None:
                yield row
        if damaged:
            notes.append(Note("damaged", damaged, f"{damaged} damaged lines of {str(file)!r} were left out"))
        return
    file = source if source.is_file() else source / "progress.csv"
    if file.is_file():
        for row in csv.DictReader(files.text_of(file).splitlines()):
            yield {k: _value(v) for k, v in row.items() if k is not None and v not in (None, "")}


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _value(text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    try:
        return float(text)
    except ValueError:
        return text


READER = Reader("ray", recognises, read)
