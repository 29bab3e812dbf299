"""Files of a logbook: lines only appended to, headers, and the error where one is foreign, newer or damaged."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from metaopt_hpo.errors import MetaOptError

logger = logging.getLogger(__name__)

JOURNAL = "metaopt-trials.jsonl"
"""Name of a journal within its experiment's folder."""

FORMAT = "metaopt-hpo ray journal"
VERSION = 3
"""3: times, reasons of launches, and fields that a report may leave out."""


class LogbookError(MetaOptError):
    """A journal or a saved state is not one of ours, or is damaged."""


def read_state(path: str | os.PathLike[str], whose: str, take: Callable[[Any], None]) -> None:
    """Give `take` what `path` holds in JSON.

    Args:
        whose: who saved it, for the message.

    Raises:
        LogbookError: there is no such file, it is damaged, or it is something else's.
    """
    try:
        take(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise LogbookError(
            f"the saved state of {whose}, {path}, cannot be read: {error.strerror or error}"
        ) from error
    except (
        MetaOptError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise LogbookError(
            f"{path} is no saved state of {whose}, or a damaged one ({reason:.200}); begin without it, or restore the "
            "file"
        ) from error


def header() -> str:
    """The first line of a journal."""
    return json.dumps({"format": FORMAT, "version": VERSION})


def check_header(state: Any) -> None:
    """Raise LogbookError unless `state` says that it is ours and not of a newer version."""
    if not isinstance(state, Mapping) or state.get("format") != FORMAT:
        raise LogbookError("this is not a journal of trials of metaopt-hpo")
    if not isinstance(state.get("version"), int) or state["version"] > VERSION:
        raise LogbookError(
            f"the journal of trials has version {state.get('version')!r}, this installation reads up to {VERSION}; "
            "upgrade metaopt-hpo"
        )


def parse(line: str) -> dict[str, Any] | None:
    """A line's object; None where it is damaged."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


class LineFile:
    """A file of lines that is only appended to, and that survives a full disk.

    What cannot be written waits in memory and is written later, from the very byte at which the disk was full. A file
    that was deleted or moved meanwhile is begun anew with `first`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None
        self._waiting = bytearray()
        self._failing = False

    def open(self) -> bool:
        """Open it, made where it is missing; True where it is new."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(self.path, os.O_APPEND | os.O_CREAT | os.O_RDWR, 0o644)
        size = os.fstat(self._handle).st_size
        if size and os.pread(self._handle, 1, size - 1) != b"\n":
            self._waiting[:0] = b"\n"  # a line that a kill has cut off stands alone
        return size == 0

    @property
    def deleted(self) -> bool:
        """True where somebody has deleted it while it was open."""
        return self._handle is not None and os.fstat(self._handle).st_nlink == 0

    def write(self, rows: Iterable[Any]) -> None:
        """Append each row as a line of JSON, now or as soon as that can be done again."""
        self._waiting += "".join(f"{json.dumps(row, default=str)}\n" for row in rows).encode()
        if not self._waiting:
            return
        try:
            if self._handle is None:
                self.open()
            assert self._handle is not None
            while self._waiting:
                del self._waiting[: os.write(self._handle, self._waiting)]
        except OSError as error:
            if not self._failing:
                logger.warning("%s cannot be written (%s); what happens is kept in memory", self.path, error)
            self._failing = True
            return
        if self._failing:
            logger.warning("%s can be written again; nothing is missing in it", self.path)
        self._failing = False

    def forget_waiting(self) -> None:
        """Drop what waits: it is about to be said anew."""
        self._waiting.clear()

    def close(self) -> None:
        """Close it, after a last attempt to write what waits."""
        self.write(())
        if self._waiting:
            logger.error("%s could not be written: %d bytes are lost", self.path, len(self._waiting))
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_handle": None, "_waiting": bytearray(), "_failing": False}
