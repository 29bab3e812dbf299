"""TrialBook: what is known of every trial of an experiment, as a pure function of a list of events.

Tune restores neither its schedulers nor whole dataframes, and its counters go back when a trial is retried. So
the plugin keeps its own book. Every change is an event, a small JSON object; `apply` is the only way to change
the book, and applying the same events again gives the same book. That is what makes a restore exact, and an
event that is told twice harmless. No Ray here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.trials.record import TrialRecord, TrialState
from metaopt_hpo_ray.entry import STATES, Entry, Place

FORMAT = "metaopt-hpo ray journal"
VERSION = 2
"""2: which trials were spared, and stops in a row."""

Event = dict[str, Any]

_RECORDED = (
    "initial_loss",
    "seconds",
    "memory",
    "grad_noise",
    "found_lr",
    "found_lr_spread",
    "workload",
)


class BookError(MetaOptError):
    """A journal or a saved state is not one of ours, or is damaged."""


class TrialBook:
    """The trials of one experiment. Change it with `apply`, or with the methods that make the events.

    Attributes:
        entries: trial id → entry, in the order they were added.
        events: how many events have changed the book.
        outbox: events not yet taken by whoever keeps a journal; None where nobody does.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.events = 0
        self.outbox: list[Event] | None = None
        self.best: dict[tuple[float, float], float] = {}
        """(size, tokens) → lowest positive loss of a completed trial there: a law is of no other."""
        self.completed = 0
        self.stops: dict[Place, int] = {}
        """Place → trials stopped there, or not launched, since one was last run to its end."""
        self._spared: dict[Place, list[str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"state": self.to_state(), "outbox": None if self.outbox is None else []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.load_state(state["state"])
        self.outbox = state["outbox"]

    # -- what can happen -----------------------------------------------------------------------------------

    def add(self, trial: str, **facts: Any) -> None:
        """A trial and what its config says of it; told again after a retry, it is running again."""
        entry = self.entries.get(trial)
        if entry is None:
            self.apply({"k": "add", "id": trial, **facts})
        elif entry.state == "failed":
            self.apply({"k": "state", "id": trial, "state": "running", "reason": ""})

    def launch(self, trial: str) -> None:
        """The trial may have resources."""
        if not self.entries[trial].launched:
            self.apply({"k": "launch", "id": trial})

    def spare(self, trial: str) -> None:
        """The trial is let finish, whatever the law says of it."""
        if not self.entries[trial].spared:
            self.apply({"k": "spare", "id": trial})

    def sparing(self, place: Place) -> bool:
        """True while a spared trial of the place has not ended."""
        return any(not self.entries[t].closed for t in self._spared.get(place, ()))

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
        event: Event = {
            "k": "report",
            "id": trial,
            "t": float(tokens),
            "loss": float(loss),
            "p": process,
            "work": work,
            "cost": cost,
            "step": step_size,
            "norm": grad_norm,
        }
        if extra:
            event["extra"] = dict(extra)
        self.apply(event)

    def close(self, trial: str, state: TrialState, reason: str = "") -> None:
        """The trial has ended; what is said first stands, but for a failure, which a retry may mend."""
        entry = self.entries[trial]
        if not entry.closed or (entry.state == "failed" and state != "failed"):
            self.apply({"k": "state", "id": trial, "state": state, "reason": reason})

    def note(self, trial: str, text: str) -> None:
        """Something that happened to the trial and belongs in its row; what was noted before stands too."""
        self.apply({"k": "note", "id": trial, "text": text})

    # -- the one mutator -----------------------------------------------------------------------------------

    def apply(self, event: Event) -> None:
        """Change the book by one event.

        Raises:
            BookError: no event of ours; the book is as it was.
        """
        try:
            self._APPLY[event["k"]](self, event)
        except (KeyError, TypeError, ValueError) as error:
            raise BookError(f"not an event of a trial journal: {event!r:.120} ({error!r})") from error
        self.events += 1
        if self.outbox is not None:
            self.outbox.append(event)

    def _add(self, event: Event) -> None:
        facts = {k: v for k, v in event.items() if k not in ("k", "id")}
        self.entries[event["id"]] = Entry(event["id"], **facts)

    def _launch(self, event: Event) -> None:
        self.entries[event["id"]].launched = True

    def _spare(self, event: Event) -> None:
        entry = self.entries[event["id"]]
        if not entry.spared:
            entry.spared = True
            self._spared.setdefault(entry.place, []).append(entry.trial)

    def _report(self, event: Event) -> None:
        entry = self.entries[event["id"]]
        tokens, loss, process = event["t"], event["loss"], event["p"]
        spent = entry.spent(process, tokens, event["work"])
        extra = event.get("extra")
        if extra:
            entry.note_lr(extra)
        entry.points[tokens] = (loss, event["step"], event["norm"], event["cost"])
        entry.last = (tokens, loss)
        entry.work[process] = max(spent, entry.work.get(process, 0.0))
        entry.launched = True
        if extra:
            entry.extra = {k: v for k, v in extra.items() if k in _RECORDED}
            for name in ("size", "batch", "lr"):
                if not getattr(entry, name) > 0 and name in extra:
                    setattr(entry, name, float(extra[name]))
            entry.strategy = extra.get("strategy", entry.strategy)
            entry.tuning = extra.get("tuning", entry.tuning)
            entry.seed = extra.get("seed", entry.seed)

    def _state(self, event: Event) -> None:
        entry = self.entries[event["id"]]
        if event["state"] not in STATES:
            raise ValueError(f"state {event['state']!r}")
        before = entry.state
        if before == "complete":
            return
        entry.state, entry.reason = event["state"], event["reason"]
        if entry.state == "pruned" and before != "pruned":
            self.stops[entry.place] = self.stops.get(entry.place, 0) + 1
        if entry.state == "complete":
            self.stops.pop(entry.place, None)
            self._note_complete(entry)

    def _note_complete(self, entry: Entry) -> None:
        self.completed += 1
        key = (entry.size, entry.tokens)
        if 0 < entry.last[1] < math.inf:
            self.best[key] = min(entry.last[1], self.best.get(key, math.inf))

    def _note(self, event: Event) -> None:
        entry, text = self.entries[event["id"]], str(event["text"])
        if text not in entry.note:
            entry.note = f"{entry.note}; {text}" if entry.note else text

    def _snapshot(self, event: Event) -> None:
        self.load_state(event["state"])
        self.events -= 1  # the snapshot is no event of its own

    _APPLY: ClassVar[dict[str, Callable[[TrialBook, Event], None]]] = {
        "snapshot": _snapshot,
        "add": _add,
        "launch": _launch,
        "spare": _spare,
        "report": _report,
        "state": _state,
        "note": _note,
    }

    # -- as data -------------------------------------------------------------------------------------------

    def records(self, *, study: str = "", maximize: bool = False) -> list[TrialRecord]:
        """Trials whose size, batch and lr are known, as records, in the order they were added."""
        return [
            e.record(study=study, maximize=maximize)
            for e in self.entries.values()
            if e.size > 0 and e.batch > 0 and e.lr > 0
        ]

    def to_state(self) -> dict[str, Any]:
        """The book as plain data, for Tune's own snapshot."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "events": self.events,
            "stops": [[*place, count] for place, count in self.stops.items()],
            "entries": [e.to_state() for e in self.entries.values()],
        }

    def load_state(self, state: Any) -> None:
        """Become the book `to_state` described.

        Raises:
            BookError: not such a state.
        """
        check_header(state)
        try:
            entries = [Entry.from_state(e) for e in state["entries"]]
            events = int(state["events"])
            stops = {(int(s), int(t)): int(n) for s, t, n in state.get("stops", ())}
        except (KeyError, TypeError, ValueError) as error:
            raise BookError(f"the saved state of the trials is damaged ({error!r})") from error
        self.entries = {e.trial: e for e in entries}
        self.events = events
        self.stops = stops
        self._spared = {}
        self.best, self.completed = {}, 0
        for e in entries:
            if e.spared:
                self._spared.setdefault(e.place, []).append(e.trial)
            if e.state == "complete":
                self._note_complete(e)

    @classmethod
    def replay(cls, lines: Iterable[str]) -> TrialBook:
        """The book that a journal's lines describe. A last line that was cut off by a kill is passed over.

        Raises:
            BookError: the first line is no header of ours, or a line before the last is damaged.
        """
        book = cls()
        rows = [line for line in lines if line.strip()]
        if not rows:
            raise BookError("the journal of trials is empty")
        check_header(_parse(rows[0], 1))
        for number, line in enumerate(rows[1:], start=2):
            try:
                book.apply(_parse(line, number))
            except BookError:
                if number == len(rows):
                    break
                raise
        return book


def header() -> str:
    """The first line of a journal."""
    return json.dumps({"format": FORMAT, "version": VERSION})


def check_header(state: Any) -> None:
    """Raise BookError unless `state` says that it is ours and not of a newer version."""
    if not isinstance(state, Mapping) or state.get("format") != FORMAT:
        raise BookError("this is not a journal of trials of metaopt-hpo")
    if not isinstance(state.get("version"), int) or state["version"] > VERSION:
        raise BookError(
            f"the journal of trials has version {state.get('version')!r}, this installation reads up to {VERSION}; "
            "upgrade metaopt-hpo"
        )


def _parse(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise BookError(f"line {number} of the journal of trials is damaged: {error.msg}") from error
