"""The journal: every event of an experiment in a file of its folder, one line of JSON each, only ever appended to.

It is the one copy of what is known. Tune's own snapshots, which are seconds older, hold nothing of it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.fs  # type: ignore[import-untyped]

from metaopt_hpo.atomic import WriteError, write_bytes
from metaopt_hpo_ray.restoring import copy_tuner
from metaopt_hpo_ray.saved import BookError, header
from metaopt_hpo_ray.trial_book import TrialBook

logger = logging.getLogger(__name__)

JOURNAL = "metaopt-trials.jsonl"
"""Name of the journal within the experiment's folder."""

DECISIONS = "metaopt-decisions.jsonl"
"""Name of the decision log beside it: one line for each launch, stop and fit, for people and their tools."""


class Appended:
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


class Journal:
    """Keeps a book in its experiment's folder.

    Attributes:
        book: what is kept.
        restored: True where Tune has said that this experiment is a restored one.
        resumed: True once what was known of a restored experiment has been read.

    Args:
        book: see above.
        rebuild: makes a book from the trials' own files in (file system, folder), where the journal is of no use.
    """

    def __init__(self, book: TrialBook, rebuild: Callable[[Any, str], TrialBook] | None = None) -> None:
        self.book = book
        self.resumed = False
        self.restored = False
        self._rebuild = rebuild
        self._events: Appended | None = None
        self._decisions: Appended | None = None

    @property
    def is_open(self) -> bool:
        """True once the experiment's folder is known."""
        return self._events is not None

    def open(self, storage: Any, trials: Iterable[str] = ()) -> None:
        """Begin the experiment's journal, or in a restored experiment go on with the one that is there.

        The journal lies in the experiment's folder where that is on this machine's file system, and else in the
        folder that Tune uploads with each of its own snapshots. That of another experiment, in whose folder this one
        runs, is moved aside.

        Args:
            storage: Tune's storage of the experiment.
            trials: of this experiment; where the journal knows one of them, it is this experiment's.
        """
        local = isinstance(storage.storage_filesystem, pyarrow.fs.LocalFileSystem)
        folder = Path(storage.experiment_fs_path if local else storage.experiment_driver_staging_path)
        path = folder / JOURNAL
        try:
            if not local and not path.exists():
                _download(storage, path)
            if path.exists():
                self._take_over(path, set(trials))
            if self.restored and not self.resumed:
                self._from_files(storage)
        except (OSError, WriteError) as error:
            logger.warning("the journal of the trials in %s cannot be read: %s", folder, error)
        if local:
            with contextlib.suppress(OSError, WriteError):
                copy_tuner(str(folder))
        self._events, self._decisions = Appended(path), Appended(folder / DECISIONS)
        self.book.outbox, self.book.decisions = [], []
        self._begin()

    def _from_files(self, storage: Any) -> None:
        """There is no journal to go on with: Tune's own files of the trials have most of what it held."""
        self.resumed = True
        if self._rebuild is None or self.book.entries:
            return
        logger.warning("there is no journal to go on with; curves are read from the trials' own files")
        self.book.take_over(self._rebuild(storage.storage_filesystem, str(storage.experiment_fs_path)))

    def _take_over(self, path: Path, trials: set[str]) -> None:
        try:
            with path.open(encoding="utf-8", errors="replace") as lines:
                saved = TrialBook.replay(lines)
        except BookError as error:
            logger.warning("%s; it is moved aside", error)
            saved = None
        if saved is not None and (self.restored or not trials.isdisjoint(saved.entries)):
            if saved.damaged:
                logger.warning("%d damaged lines of %s were passed over", saved.damaged, path)
            if saved.events >= self.book.events:
                self.book.take_over(saved)
            else:  # an earlier version kept the trials in Tune's snapshot
                with path.open("a", encoding="utf-8") as file:
                    file.write("\n" + json.dumps({"k": "snapshot", "state": self.book.to_state()}) + "\n")
            self.resumed = True
            return
        for name in (JOURNAL, DECISIONS):
            old = path.with_name(name)
            if old.exists():
                count = len(list(path.parent.glob(f"{old.stem}.old-*")))
                os.replace(old, old.with_name(f"{old.stem}.old-{count}.jsonl"))

    def _begin(self) -> None:
        """Open the file; one that is new gets its header, and what is known already."""
        assert self._events is not None
        try:
            new = self._events.open()
        except OSError as error:
            logger.warning("no journal of the trials can be kept in %s now: %s", self._events.path, error)
            new = True
        if new:
            self._events.write([json.loads(header())])
            if self.book.entries:
                self._events.write([{"k": "snapshot", "state": self.book.to_state()}])

    def flush(self) -> None:
        """Write what has happened since the last call."""
        if self._events is None or self._decisions is None:
            return
        rows, said = self.book.outbox, self.book.decisions
        if rows:
            self.book.outbox = []
            if self._events.deleted:
                self._events.close()
                self._events.forget_waiting()
                self._begin()
            else:
                self._events.write(rows)
        else:
            self._events.write(())
        if said:
            self.book.decisions = []
            self._decisions.write(said)

    def close(self) -> None:
        """Write everything and close the files; a later `flush` opens them again."""
        self.flush()
        for file in (self._events, self._decisions):
            if file is not None:
                file.close()

    def state(self) -> dict[str, Any]:
        """What Tune's snapshot holds of the book: where the journal is; without one, the book."""
        if self._events is None:
            return self.book.pack()
        return {"journal": self._events.path.name, "events": self.book.events}

    def load_state(self, state: Any) -> None:
        """Take up what `state` described; from the journal, where there is one, once it is opened."""
        self.restored = True
        if "entries" in state:
            self.book.load_state(state)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "resumed": False, "restored": False, "_events": None, "_decisions": None}


def _download(storage: Any, path: Path) -> None:
    """Fetch a journal from storage that is not on this machine."""
    source = f"{storage.experiment_fs_path}/{JOURNAL}"
    files = storage.storage_filesystem
    if files.get_file_info(source).type != pyarrow.fs.FileType.File:
        return
    with files.open_input_stream(source) as stream:
        write_bytes(path, stream.readall())
