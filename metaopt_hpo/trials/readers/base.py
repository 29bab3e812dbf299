"""What a reader gives: rows in a foreign tool's own names, and what the reader knows about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from metaopt_hpo.trials.conform import Options, Reading
from metaopt_hpo.trials.schema import Note, TableError


@dataclass(frozen=True)
class Export:
    """One export as rows, one a run or one a report.

    Attributes:
        title: what it is, for people: "W&B runs table".
        frames: makes the rows, in chunks; `as_text` names columns to be left as they are written.
        columns: where the tool itself says what a column is (our name → its name); a user's mapping goes first.
        settings: prefixes of the columns that are settings of a run; without one every column may be.
        line: line of the first row in a text file.
        notes: what is to be said about the export.
        sparse: see `Reading`.
        engine: who ran the trials, where the table does not say.
    """

    title: str
    frames: Callable[[Sequence[str]], Iterable[pd.DataFrame]]
    columns: Mapping[str, str | float] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    line: int | None = None
    notes: tuple[Note, ...] = ()
    engine: str = ""
    sparse: bool = False

    def reading(self, options: Options) -> Reading:
        """The export conformed to the schema, all but the last step."""
        given = {k: v for k, v in self.columns.items() if k not in options.columns}
        options = Options(
            {**given, **options.columns},
            options.units,
            options.sequence_length,
            options.decimal,
            options.take_finished,
            options.implausible,
        )
        reading = self._read(options, (), points_open=False)
        # where decimals have commas, a lone point may group thousands: read what pandas took for numbers again as text
        if self.line is not None and reading.numbers.comma_proved and reading.names is not None:
            texts = [v for v in reading.names.found.values() if isinstance(v, str)]
            reading = self._read(options, texts, points_open=True)
        reading.notes[:0] = self.notes
        return reading

    def _read(self, options: Options, as_text: Sequence[str], *, points_open: bool) -> Reading:
        reading = Reading(
            options, line=self.line, points_open=points_open, settings=self.settings, sparse=self.sparse
        )
        for frame in self.frames(as_text):
            if self.engine and "engine" not in frame.columns:
                frame = frame.assign(engine=self.engine)
            reading.take(frame)
        if not reading.parts:
            raise TableError("the table has no rows")
        return reading

    def sample(self) -> pd.DataFrame:
        """All rows as the tool has them (for `inspect`)."""
        return pd.concat(list(self.frames(())), ignore_index=True)


@dataclass(frozen=True)
class Reader:
    """One tool's exports: which paths are its own, and how they are read.

    Attributes:
        name: as `format=` takes it.
        recognises: whether a path is such an export; cheap, and never raises.
        read: the export; raises `TableError` where it is damaged.
        asked: readers of lower numbers are asked first: a tool in whose folders others write (Ray Tune) before those
            others (TensorBoard), and plain tables last.
    """

    name: str
    recognises: Callable[[str], bool]
    read: Callable[[str], Export]
    asked: int = 0


def one_frame(frame: pd.DataFrame) -> Callable[[Sequence[str]], Iterable[pd.DataFrame]]:
    """`Export.frames` of a frame that is in memory."""
    return lambda as_text: (frame,)


def need(module: str, extra: str, what: str) -> ModuleType:
    """A library that reads a format, or how to install it.

    Raises:
        TableError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as e:
        raise TableError(
            f"{what} need the library {module.split('.')[0]!r}: pip install 'metaopt-hpo[{extra}]'"
        ) from e


def files_below(path: str, pattern: str, *, depth: int = 6) -> list[Path]:
    """Files below a folder whose names match, sorted; the file itself where `path` is one."""
    root = Path(path)
    if root.is_file():
        return [root] if root.match(pattern) else []
    if not root.is_dir():
        return []
    return sorted(p for p in root.rglob(pattern) if p.is_file() and len(p.relative_to(root).parts) <= depth)


def run_name(file: Path, root: str) -> str:
    """The folder of a run's file below the folder that was given: what tells it from other runs there."""
    base = Path(root)
    if base.is_file() or file.parent == base:
        return file.parent.resolve().name
    return str(file.parent.relative_to(base))


def long_frame(runs: Iterable[tuple[dict[str, Any], list[dict[str, Any]]]]) -> pd.DataFrame:
    """Runs, each with what holds for all its rows and its reports, as one frame with one row a report.

    A value that a report gives as NaN becomes infinite, so that it is not taken for one that it does not give.
    """
    rows = [
        common | {k: math.inf if v != v else v for k, v in report.items()}
        for common, reports in runs
        for report in (reports or [{}])
    ]
    frame = pd.DataFrame(rows)
    return frame.dropna(axis="columns", how="all") if len(frame) else frame
