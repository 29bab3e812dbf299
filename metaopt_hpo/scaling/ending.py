"""Threads that fit ahead end before the interpreter does.

A daemon thread that is in native code when the interpreter is torn down is ended there by force, and where that code
is C++ the process aborts. A fit is not worth waiting for at exit either, so it stops at its next step.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Callable

PATIENCE = 2.0
"""Seconds for which all threads together are waited for at exit; a step takes milliseconds."""


class Abandoned(BaseException):
    """The interpreter is ending and nobody will read the fit; no `except Exception` takes it for a failed one."""


_threads: set[threading.Thread] = set()
_lock = threading.Lock()
_ending = False


def go_on() -> None:
    """Called at every step of a fit: raises `Abandoned` in a thread of `start` once the interpreter is ending."""
    if _ending and threading.current_thread() in _threads:
        raise Abandoned


def start(target: Callable[[], object], name: str) -> None:
    """Run `target` in a thread that ends with the interpreter; once that is ending, do nothing."""

    def run() -> None:
        try:
            target()
        except Abandoned:
            pass
        finally:
            with _lock:
                _threads.discard(thread)

    thread = threading.Thread(target=run, name=name, daemon=True)
    with _lock:
        if _ending:
            return
        _threads.add(thread)
        thread.start()


def _end() -> None:
    global _ending
    with _lock:
        _ending = True
        left = list(_threads)
    until = time.monotonic() + PATIENCE
    for thread in left:
        while thread.is_alive() and (wait := until - time.monotonic()) > 0:
            with contextlib.suppress(KeyboardInterrupt):  # the interpreter is ending already
                thread.join(wait)


def _after_fork() -> None:
    """A child has none of its parent's threads."""
    global _lock, _ending
    _lock, _ending = threading.Lock(), False
    _threads.clear()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
