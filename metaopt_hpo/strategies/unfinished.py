"""Say at the end of a process that a run was left before its horizon, with its step size never lowered.

A plain loop has no end that a run could see: a loader that is shorter than thought, or a horizon that counts batches
where steps accumulate them, leaves a run without its cooldown, and nothing else would say so.
"""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from typing import Protocol

NEARLY = 0.95
"""A run that came so far has lowered its step size: a few steps are lost where a loss scale overflows."""


class Steps(Protocol):
    """What a run tells of itself."""

    steps_taken: int
    horizon: int

    @property
    def ends_low(self) -> bool:
        """Whether the end of the run matters."""


_alive: weakref.WeakSet[Steps] = weakref.WeakSet()


def watch(run: Steps) -> None:
    """Look at this run once more when the process ends, if it still exists."""
    if not _alive:
        atexit.register(say)
    _alive.add(run)


def unfinished() -> list[str]:
    """A sentence for each run that has begun and not reached its horizon."""
    return [
        f"a run planned for {run.horizon} steps ended after {run.steps_taken}, before its step size was lowered: give "
        "wrap() the number of optimizer steps that the loop takes"
        for run in list(_alive)
        if run.ends_low and 0 < run.steps_taken < NEARLY * run.horizon
    ]


def say() -> None:
    """Write the sentences to standard error, once a job; a process that ends by an exception has said enough."""
    if os.environ.get("RANK", "0") == "0" and not hasattr(sys, "last_value"):
        for text in unfinished():
            print(f"metaopt-hpo: {text}", file=sys.stderr)
