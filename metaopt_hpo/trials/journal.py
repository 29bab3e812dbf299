"""The journal of a logbook: every event in a file of the experiment's folder, a line of JSON each, only appended to.

It is the one copy of what is known; a framework's own snapshots, which are seconds older, hold nothing of it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from metaopt_hpo.atomic import WriteError
from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.logbook_file import JOURNAL, LineFile, LogbookError, header

logger = logging.getLogger(__name__)

DECISIONS = "metaopt-decisions.jsonl"
"""Name of the decision log beside it: one line for each launch, stop and fit, for people and their tools."""


class Journal:
    """Keeps a book in its experiment's folder.

    Attributes:
        book: what is kept.
        restored: True where the framework has said that this experiment is a restored one.
        resumed: True once what was known of a restored experiment has been read.

    Args:
        book: see above.
    """

    def __init__(self, book: Logbook) -> None:
        self.book = book
        self.resumed = False
        self.restored = False
        self._events: LineFile | None = None
        self._decisions: LineFile | None = None

    @property
    def is_open(self) -> bool:
        """True once the experiment's folder is known."""
        return self._events is not None

    def open(
        self,
        folder: Path,
        trials: Iterable[str] = (),
        *,
        fetch: Callable[[Path], None] | None = None,
        rebuild: Callable[[], Logbook] | None = None,
    ) -> None:
        """Begin the experiment's journal, or in a restored experiment go on with the one that is there.

        That of another experiment, in whose folder this one runs, is moved aside.

        Args:
            folder: where the journal lies.
            trials: of this experiment; where the journal knows one of them, it is this experiment's.
            fetch: brings a journal that is kept elsewhere to a path, where there is one.
            rebuild: makes a book from what else is kept of the trials, where a restored experiment has no journal.
        """
        path = folder / JOURNAL
        try:
            if fetch is not None and not path.exists():
                fetch(path)
            if path.exists():
                self._take_over(path, set(trials))
            if self.restored and not self.resumed:
                self.resumed = True
                if rebuild is not None and not self.book.entries:
                    logger.warning(
                        "there is no journal to go on with; curves are read from the trials' own files"
                    )
                    self.book.take_over(rebuild())
        except (OSError, WriteError) as error:
            logger.warning("the journal of the trials in %s cannot be read: %s", folder, error)
        self._events, self._decisions = LineFile(path), LineFile(folder / DECISIONS)
        self.book.outbox, self.book.decisions = [], []
        self._begin()

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
            else:  # an earlier version kept the trials in the framework's snapshot
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
        """What the framework's snapshot holds of the book: where the journal is; without one, the book."""
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
