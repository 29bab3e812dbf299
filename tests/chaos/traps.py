"""Ends a process of itself inside a write, a commit or a fit: moments too short for a random signal to meet.

`CHAOS_TRAP=KIND:NUMBER` has the process send SIGKILL to its group at the NUMBERth

* `fsync`: flush of a file that `metaopt_hpo.atomic` is about to rename, before or after it;
* `rename`: rename of such a file over the old one, before or after it;
* `commit`: SQLite commit, up to 3 ms into it;
* `fit`: step of a law's solver.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

VARIABLE = "CHAOS_TRAP"
MOST = {"fsync": 30, "rename": 20, "commit": 100, "fit": 500}
"""The number of a trap is drawn below it, small ones more often: a life may have few."""
FITTING = ("gain", "compare-law", "replay")
"""Commands that fit laws."""
COMMITTING = ("compare", "compare-one-process", "compare-law", "attribute-engine", "run", "run-program")
"""Commands whose engine writes to SQLite."""


def drawn(name: str, draw: random.Random) -> str:
    """A trap for a command's environment."""
    fits = "fit" if name in FITTING else "fsync"
    kind = draw.choice(("fsync", "rename", fits, "commit" if name in COMMITTING else "rename"))
    return f"{kind}:{round(MOST[kind] ** draw.random())}"


def end() -> None:
    """As `kill -9` of the whole group would."""
    os.killpg(os.getpgrp(), signal.SIGKILL)
    time.sleep(60)  # the signal comes before this does


def counted(number: int, call: Callable[..., Any], around: bool) -> Callable[..., Any]:
    """`call`, which at the given time ends the process before it or, every other time, after it."""
    left = [number]

    def trapped(*args: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and (not around or number % 2):
            end()
        result = call(*args, **options)
        if left[0] == 0:
            end()
        return result

    return trapped


def set_trap() -> None:
    """Lay the trap that the environment names; without one do nothing."""
    kind, _, number = os.environ.get(VARIABLE, "").partition(":")
    if kind == "fsync":
        os.fsync = counted(int(number), os.fsync, around=True)
    elif kind == "rename":
        os.replace = counted(int(number), os.replace, around=True)
    elif kind == "fit":
        from metaopt_hpo.scaling import ending

        ending.go_on = counted(int(number), ending.go_on, around=False)
    elif kind == "commit":
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        def begin(connection: object) -> None:
            # the commit itself runs beside this thread, outside the interpreter's lock
            delay = random.Random(int(number)).uniform(0, 0.003)
            threading.Thread(target=lambda: (time.sleep(delay), end()), daemon=True).start()

        event.listen(Engine, "commit", counted_event(int(number), begin))


def counted_event(number: int, call: Callable[[object], None]) -> Callable[[object], None]:
    """`call` at the given time only."""
    left = [number]

    def each(connection: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            call(connection)

    return each
