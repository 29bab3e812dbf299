"""The time of day without jumps ahead, and calls that wait for something that does not answer just now."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

JUMP = 1.0
"""Seconds by which the time of day must get ahead of the monotonic clock between two looks to count as a jump."""


class SteadyNow:
    """The time of day without the jumps ahead of the last seconds: it was set, or the machine was asleep.

    Args:
        memory: seconds for which a jump is not counted.
    """

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._lead = time.time() - time.monotonic()
        self._jumps: list[tuple[float, float]] = []

    def __call__(self) -> float:
        """Seconds since the epoch."""
        wall, steady = time.time(), time.monotonic()
        jump = wall - steady - self._lead
        self._lead = wall - steady
        if jump > JUMP:
            self._jumps.append((steady, jump))
        self._jumps = [(when, size) for when, size in self._jumps if steady - when < self._memory]
        return wall - sum(size for _, size in self._jumps)


def retried(call: Callable[[], T], passes: Callable[[Exception], bool], patience: float) -> T:
    """`call()`, tried again with growing pauses (0.1 s to 5 s) while its error is one that passes.

    Args:
        passes: whether an error may be gone a moment later.
        patience: seconds after which the error is raised all the same.
    """
    deadline, pause = time.monotonic() + patience, 0.1
    while True:
        try:
            return call()
        except Exception as error:
            if not passes(error) or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 5.0)
