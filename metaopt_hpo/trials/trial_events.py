"""What each kind of event does to a trial of a logbook. Events come from files: values of a wrong kind are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from metaopt_hpo.trials.logged_trial import REPORTED, STATES, LoggedTrial, check_values
from metaopt_hpo.trials.record import REACHED_BY_REPORT

Event = dict[str, Any]
"""`k` is its kind and `id` the trial's; the rest is told of each kind in `CHANGES`."""

FACTS = ("size", "tokens", "batch", "lr", "strategy", "tuning", "seed", "params")
"""What a trial's configuration says of it."""

_RECORDED = frozenset(REPORTED) - {*FACTS, "target_tokens"}
"""What a report says of a trial that its configuration does not."""


def added(event: Event) -> LoggedTrial:
    """A new trial."""
    facts = {k: v for k, v in event.items() if k in FACTS}
    check_values({"trial": event["id"], **facts})
    return LoggedTrial(event["id"], **facts)


def _facts(entry: LoggedTrial, event: Event) -> None:
    """Its configuration says more than before."""
    facts = {name: event[name] for name in FACTS if name in event}
    check_values(facts)
    for name, value in facts.items():
        setattr(entry, name, value)


def _lr(entry: LoggedTrial, event: Event) -> None:
    """Its learning rate is another from here on."""
    if entry.lr > 0:
        entry.note_lr(event["lr"])
    else:
        entry.lr = float(event["lr"])


def _launch(entry: LoggedTrial, event: Event) -> None:
    said = {"launched_at": event.get("time", math.nan), "why_launched": event.get("reason", "")}
    check_values(said)
    entry.launched = True
    entry.launched_at, entry.why_launched = said["launched_at"], said["why_launched"]


def _spare(entry: LoggedTrial, event: Event) -> None:
    """It is let finish, whatever a law says of it."""
    entry.spared = True


def _report(entry: LoggedTrial, event: Event) -> None:
    """One point of its curve."""
    tokens, loss, process = event["t"], event["loss"], event["p"]
    extra = event.get("extra")
    values = {k: event[k] for k in ("step", "norm", "cost", "work") if event.get(k) is not None}
    check_values({"extra": extra or {}, "work": {"t": tokens, "loss": loss, **values}, "trial": process})
    spent = entry.spent(process, tokens, event.get("work"))
    if extra and "lr" in extra:
        entry.note_lr(extra["lr"])
    nan = math.nan
    entry.points[tokens] = (loss, event.get("step", nan), event.get("norm", nan), event.get("cost", nan))
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


def _state(entry: LoggedTrial, event: Event) -> None:
    """It runs again, or has ended; what is complete stays so."""
    if event["state"] not in STATES:
        raise ValueError(f"state {event['state']!r}")
    if entry.state == "complete":
        return
    entry.state, entry.reason, entry.cut = event["state"], event["reason"], bool(event.get("cut"))
    if entry.state == "complete" and 0 < entry.last[0] < REACHED_BY_REPORT * entry.tokens:
        entry.tokens = entry.last[0]  # who ended it had planned no more


def _note(entry: LoggedTrial, event: Event) -> None:
    text = str(event["text"])
    if text not in entry.note:
        entry.note = f"{entry.note}; {text}" if entry.note else text


CHANGES: dict[str, Callable[[LoggedTrial, Event], None]] = {
    "facts": _facts,
    "lr": _lr,
    "launch": _launch,
    "spare": _spare,
    "report": _report,
    "state": _state,
    "note": _note,
}
"""Kind of event → the change of the trial; all of them raise KeyError, TypeError, ValueError or OverflowError for what
is no such event."""
