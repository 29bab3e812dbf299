"""Logbook: what is known of every trial of an experiment, as a pure function of a list of events.

For frameworks that keep no whole history of their own: Ray Tune restores neither its schedulers nor whole dataframes,
and its counters go back when a trial is retried. Every change is an event, a small JSON object (`trial_events`);
`apply` is the only way to change the book, and applying the same events again gives the same book. That is what makes
a restore exact, and an event that is told twice harmless.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from metaopt_hpo.trials.logbook_file import FORMAT, VERSION, LogbookError, check_header, parse
from metaopt_hpo.trials.logged_trial import LoggedTrial
from metaopt_hpo.trials.record import TrialRecord, TrialState
from metaopt_hpo.trials.trial_events import CHANGES, FACTS, Event, added


class Logbook:
    """The trials of one experiment. Change it with `apply`, or with the methods that make the events.

    Attributes:
        entries: trial id → entry, in the order they were added.
        events: how many events have changed the book.
        outbox: events not yet taken by whoever keeps a journal; None where nobody does.
        decisions: entries of the decision log not yet taken; None where nobody keeps one.
        damaged: lines of the journal it was read from that could not be read.
    """

    def __init__(self) -> None:
        self.entries: dict[str, LoggedTrial] = {}
        self.events = 0
        self.outbox: list[Event] | None = None
        self.decisions: list[dict[str, Any]] | None = None
        self.damaged = 0
        self._spared: list[str] = []
        self._packed: dict[str, str] = {}
        """Trial → its entry as text, made at the last `pack` and dropped by the next event of the trial."""
        self._lenient = False

    def __getstate__(self) -> dict[str, Any]:
        return {"state": self.pack()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.load_state(state["state"])

    # -- what can happen -----------------------------------------------------------------------------------

    def add(self, trial: str, **facts: Any) -> None:
        """A trial and what its config says of it.

        Told again it fills in what was not known yet, for a searcher may choose a size late; and a trial that had
        failed, or was cut off with its experiment, is running again.
        """
        entry = self.entries.get(trial)
        if entry is None:
            self._make({"k": "add", "id": trial, **facts})
            return
        new = {
            k: v for k, v in facts.items() if k in FACTS and not _is_known(getattr(entry, k)) and _is_known(v)
        }
        if new:
            self._make({"k": "facts", "id": trial, **new})
        if entry.state == "failed" or entry.cut:
            self._make({"k": "state", "id": trial, "state": "running", "reason": ""})

    def launch(self, trial: str, reason: str = "") -> None:
        """The trial may have resources."""
        if not self.entries[trial].launched:
            self._make({"k": "launch", "id": trial, "reason": reason})

    def set_lr(self, trial: str, lr: float) -> None:
        """The trial's learning rate is another from here on: population based training changed its config."""
        if not math.isclose(self.entries[trial].lr, lr, rel_tol=1e-9):
            self._make({"k": "lr", "id": trial, "lr": lr})

    def decided(self, trial: str, action: str, reason: str, **more: Any) -> None:
        """An entry of the decision log: what was decided, why, and what the law said of it."""
        if self.decisions is not None:
            said = {k: v for k, v in more.items() if v is not None and v == v}
            now = round(time.time(), 3)
            self.decisions.append({"time": now, "trial": trial, "action": action, "reason": reason, **said})

    def spare(self, trial: str) -> None:
        """The trial is let finish, whatever the law says of it."""
        if not self.entries[trial].spared:
            self._make({"k": "spare", "id": trial})

    def sparing_now(self) -> dict[str, float]:
        """Spared trials that have not ended, and their sizes."""
        return {t: self.entries[t].size for t in self._spared if not self.entries[t].closed}

    def report(
        self,
        trial: str,
        tokens: float,
        loss: float,
        *,
        process: str = "",
        work: float | None = None,
        cost: float = math.nan,
        step_size: float = math.nan,
        grad_norm: float = math.nan,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """One point of a trial's curve.

        Args:
            process: name of the process that ran this part; a retry is another.
            work: FLOPs that process has spent on the trial. None counts 6·size for each token since the point
                it went on from.
            cost: FLOPs of the run up to this point of its curve.
            extra: further fields of the trial record.
        """
        event: Event = {"k": "report", "id": trial, "t": float(tokens), "loss": float(loss), "p": process}
        if work is not None:
            event["work"] = work
        for name, value in (("cost", cost), ("step", step_size), ("norm", grad_norm)):
            if value == value:  # not NaN
                event[name] = value
        if extra:
            event["extra"] = dict(extra)
        self._make(event)

    def close(self, trial: str, state: TrialState, reason: str = "", *, cut: bool = False) -> None:
        """The trial has ended; what is said first stands, but for a failure, which a retry may make good.

        Args:
            cut: it ended only because the experiment did.
        """
        entry = self.entries[trial]
        if not entry.closed or (entry.state == "failed" and state != "failed"):
            event = {"k": "state", "id": trial, "state": state, "reason": reason}
            self._make({**event, "cut": True} if cut else event)

    def note(self, trial: str, text: str) -> None:
        """Something that happened to the trial and belongs in its row; what was noted before stands too."""
        if text not in self.entries[trial].note:
            self._make({"k": "note", "id": trial, "text": text})

    def _make(self, event: Event) -> None:
        event["time"] = round(time.time(), 3)
        self.apply(event)

    # -- the one mutator -----------------------------------------------------------------------------------

    def apply(self, event: Event) -> None:
        """Change the book by one event.

        Raises:
            LogbookError: no event of ours; the book is as it was.
        """
        try:
            self._change(event)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise LogbookError(f"not an event of a trial journal: {event!r:.120} ({error!r})") from error
        self.events += 1
        self._packed.pop(event.get("id", ""), None)
        if self.outbox is not None:
            self.outbox.append(event)

    def _change(self, event: Event) -> None:
        if event["k"] == "snapshot":
            self.load_state(event["state"])
            self.events -= 1  # the snapshot is no event of its own
        elif event["k"] == "add":
            self.entries[event["id"]] = added(event)
        else:
            change, entry = CHANGES[event["k"]], self._entry(event)
            change(entry, event)
            if event["k"] == "spare" and entry.trial not in self._spared:
                self._spared.append(entry.trial)

    def _entry(self, event: Event) -> LoggedTrial:
        entry = self.entries.get(event["id"])
        if entry is None:
            if not self._lenient:
                raise KeyError(event["id"])
            entry = self.entries[event["id"]] = LoggedTrial(event["id"])  # the line that added it is damaged
        return entry

    # -- as data -------------------------------------------------------------------------------------------

    def records(self, *, study: str = "", maximize: bool = False) -> list[TrialRecord]:
        """Trials whose size, batch and lr are known, as records, in the order they were added."""
        return [
            e.record(study=study, maximize=maximize)
            for e in self.entries.values()
            if e.size > 0 and e.batch > 0 and e.lr > 0
        ]

    def totals(self) -> dict[str, float]:
        """Trials held back, launched and stopped (before their planned tokens, or not launched), FLOPs spent, and those
        (6 · size · tokens) that were saved by what was stopped."""
        out = dict.fromkeys(("held", "launched", "stopped", "spent", "saved"), 0.0)
        for e in self.entries.values():
            out["held"] += not e.launched and not e.closed
            out["launched"] += e.launched
            out["spent"] += e.cost
            if e.state == "pruned":
                out["stopped"] += 1
                left = 6.0 * e.size * (e.tokens - e.last[0])
                out["saved"] += max(0.0, left) if left == left else 0.0
        return out

    def to_state(self) -> dict[str, Any]:
        """The book as plain data."""
        return {**self._head(), "entries": [e.to_state() for e in self.entries.values()]}

    def pack(self) -> dict[str, Any]:
        """`to_state` with each entry as text. Only entries that have changed since the last call are written anew."""
        for key in self.entries.keys() - self._packed.keys():
            self._packed[key] = json.dumps(self.entries[key].to_state())
        return {**self._head(), "entries": [self._packed[key] for key in self.entries]}

    def _head(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, "events": self.events}

    def load_state(self, state: Any) -> None:
        """Become the book that `to_state` or `pack` described.

        Raises:
            LogbookError: not such a state.
        """
        check_header(state)
        try:
            rows = [json.loads(e) if isinstance(e, str) else e for e in state["entries"]]
            entries = [LoggedTrial.from_state(e) for e in rows]
            events = int(state["events"])
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise LogbookError(f"the saved state of the trials is damaged ({error!r})") from error
        self.become(entries, events)

    def take_over(self, other: Logbook) -> None:
        """Become a book like another, which is given up."""
        self.become(list(other.entries.values()), other.events)
        self.damaged = other.damaged

    def become(self, entries: list[LoggedTrial], events: int) -> None:
        """Become the book of these entries."""
        self.entries = {e.trial: e for e in entries}
        self.events = events
        self._packed = {}
        self._spared = [e.trial for e in entries if e.spared]

    @classmethod
    def replay(cls, lines: Iterable[str]) -> Logbook:
        """The book that a journal's lines describe.

        Every line stands alone: one that is damaged, or was cut off by a kill, is passed over and counted in
        `damaged`. Where it was the line that added a trial, the trial's config is not known until Tune adds it again.

        Raises:
            LogbookError: no journal of ours, or one of a newer version.
        """
        book = cls()
        book._lenient = True
        rows: Iterator[str] = (line for line in lines if line.strip())
        first = next(rows, None)
        if first is None:
            raise LogbookError("the journal of trials is empty")
        head = parse(first)
        if (
            head is None or "k" in head
        ):  # the first line is gone: the others say whether this is a journal of ours
            rows = chain([first], rows)
        else:
            check_header(head)
        bad = 0
        for line in rows:
            book.damaged += bad  # but for the last line, which a kill may have cut off
            bad = 0
            event = parse(line)
            try:
                if event is None:
                    raise LogbookError("no event")
                book.apply(event)
            except (LogbookError, AttributeError):
                bad = 1
        if not book.events and (head is None or "k" in head):
            raise LogbookError("this is not a journal of trials of metaopt-hpo")
        book._lenient = False
        return book


def _is_known(value: Any) -> bool:
    """False for what an entry holds where nothing was said: NaN, an empty text, no parameters."""
    return bool(value == value and value not in ("", {}))
