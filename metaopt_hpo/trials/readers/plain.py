"""Tables without a tool of their own: CSV and the like, Parquet, Feather, JSON; a folder of a comparison of ours."""

from __future__ import annotations

from pathlib import Path

from metaopt_hpo.trials import files
from metaopt_hpo.trials.logbook_file import JOURNAL
from metaopt_hpo.trials.readers.base import Export, Reader
from metaopt_hpo.trials.schema import TableError

OWN = "trials.parquet"
"""The table in a comparison's results folder."""

TITLES = {".parquet": "Parquet table", ".feather": "Feather table", ".json": "JSON table"}


def recognises(path: str) -> bool:
    """A file of a known kind; a folder that holds our own table."""
    file = Path(path)
    # lines of a journal are no trials, and its own reader knows them
    table = file.is_file() and files.suffix(file) in files.SUFFIXES and file.name != JOURNAL
    return table or (file / OWN).is_file()


def read(path: str) -> Export:
    """The table at a path."""
    file = Path(path)
    if file.is_dir():
        file = file / OWN
    if not file.is_file():
        raise TableError(f"there is no table at {path!r}")
    kind = files.suffix(file)
    line = None
    title = TITLES.get(kind, "JSON lines" if kind in files.JSON_LINES else "table")
    if kind in files.TEXT:
        try:
            layout = files.text_layout(file)
        except OSError as e:
            raise TableError(f"cannot read {path!r} as a table: {e}") from e
        line, title = layout.first_line, f"table of text, separated by {_said(layout.separator)}"
    return Export(title, lambda as_text: files.chunks(file, as_text=as_text), line=line)


def _said(separator: str) -> str:
    return {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}.get(separator, repr(separator))


READER = Reader("table", recognises, read, asked=3)
