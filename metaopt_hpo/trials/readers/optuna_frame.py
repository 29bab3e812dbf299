"""Optuna's `study.trials_dataframe()` on disk. Storages by URL are read by the Optuna integration's own reader."""

from __future__ import annotations

from pathlib import Path

from metaopt_hpo.trials import files
from metaopt_hpo.trials.readers.base import Export, Reader
from metaopt_hpo.trials.schema import TableError


def recognises(path: str) -> bool:
    """A table with a trial's number, value, state and times."""
    file = Path(path)
    if not file.is_file() or files.suffix(file) not in files.TEXT:
        return False
    try:
        names = set(files.text_layout(file).names)
    except (TableError, OSError, UnicodeDecodeError, EOFError):
        return False
    return {"number", "state", "datetime_start"} <= names


def read(path: str) -> Export:
    """The trials of the frame."""
    file = Path(path)
    layout = files.text_layout(file)
    columns = {
        ours: theirs for ours, theirs in (("loss", "value"), ("trial", "number")) if theirs in layout.names
    }
    return Export(
        "Optuna trials_dataframe",
        lambda as_text: files.chunks(file, as_text=as_text),
        columns,
        line=layout.first_line,
        settings=("params_", "user_attrs_"),
        engine="optuna",
    )


READER = Reader("optuna-frame", recognises, read, asked=2)
