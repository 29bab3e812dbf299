"""The journal: every event of an experiment in a file of its folder, one line of JSON each, only ever appended to.

It is the one copy of what is known. Tune's own snapshots, which are seconds older, hold nothing of it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import pyarrow.fs  # type: ignore[import-untyped]

from metaopt_hpo.atomic import WriteError, write_bytes
from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.logbook_file import LineFile, LogbookError, header
from metaopt_hpo_ray.columns import TuneWarning
from metaopt_hpo_ray.restoring import copy_tuner

logger = logging.getLogger(__name__)

JOURNAL = "metaopt-trials.jsonl"
"""Name of the journal within the experiment's folder."""

DECISIONS = "metaopt-decisions.jsonl"
"""Name of the decision log beside it: one line for each launch, stop and fit, for people and their tools."""


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

    def __init__(self, book: Logbook, rebuild: Callable[[Any, str], Logbook] | None = None) -> None:
        self.book = book
        self.resumed = False
        self.restored = False
        self._rebuild = rebuild
        self._events: LineFile | None = None
        self._decisions: LineFile | None = None

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
        self._events, self._decisions = LineFile(path), LineFile(folder / DECISIONS)
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
                saved = Logbook.replay(lines)
        except LogbookError as error:
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


class Owner(Protocol):
    """What a `JournalCallback` needs of a scheduler that owns the experiment's state."""

    journal: Journal

    @property
    def book(self) -> Logbook:
        """What is known of every trial."""
        ...

    def keep_with(self) -> None:
        """Told that its state is kept."""
        ...

    def get_state(self) -> dict[str, Any]:
        """What Tune's snapshot holds."""
        ...

    def set_state(self, state: Any) -> None:
        """Take up what `get_state` gave."""
        ...

    def finish(self) -> None:
        """The experiment has ended."""
        ...


_owners: WeakValueDictionary[str, Owner] = WeakValueDictionary()
"""Folder of an experiment → its scheduler in this process, whoever pickled the two apart on their way here."""


def owner_of(storage: Any, otherwise: Owner) -> Owner:
    """The scheduler of this process that owns the state of an experiment; `otherwise` where none is known."""
    return _owners.get(str(storage.experiment_fs_path), otherwise)


def own(storage: Any, owner: Owner) -> None:
    """Make a scheduler known as the one that owns the state of an experiment."""
    _owners[str(storage.experiment_fs_path)] = owner


def warn_unkept(*, endless: bool) -> None:
    """Say what is missing where no `JournalCallback` keeps the state of a `ScalingLawScheduler`.

    Raises:
        ValueError: trials are to be drawn without end.
    """
    if endless:
        raise ValueError(
            "num_samples=-1 with ScalingLawScheduler needs metaopt_hpo_ray.tuner_configs(scheduler=…, "
            "num_samples=-1): trials that are held back do not count as pending, and Tune would draw new ones "
            "for ever"
        )
    warnings.warn(
        "ScalingLawScheduler runs without a JournalCallback: Tuner.restore will not bring its law and its "
        "decisions back, since Tune does not save schedulers; build the Tuner's configs with "
        "metaopt_hpo_ray.tuner_configs(scheduler=…)",
        TuneWarning,
        stacklevel=3,
    )
