"""Signals that end a command: the first lets it say what is kept, the second ends it at once."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""Exit code that commands give an interrupt: 128 and the number of SIGINT."""

AGAIN = 0.05
"""Seconds after which a signal is sent again that came where Python drops exceptions: it is past that by then."""

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def interruptible() -> Iterator[None]:
    """Treat SIGTERM (a scheduler's) and SIGHUP (a closed terminal) as Ctrl-C for the block.

    A command sees KeyboardInterrupt and exits with 130, which becomes 128 and the number of the signal that came. A
    second signal ends the process at once: everything finished is on the disk by then, and workers end with it. A
    signal that was ignored before, as by nohup, stays ignored. While the interpreter ends, a signal does so at once.

    Python drops an exception that comes up in a finalizer or a weak reference's callback: a signal that arrives there
    is sent again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    atexit.unregister(_end_in_silence)
    atexit.register(_end_in_silence)
    came: list[int] = []

    def first(number: int, frame: FrameType | None) -> None:
        if came:
            os._exit(128 + number)
        came.append(number)
        raise KeyboardInterrupt

    def dropped(unraisable: sys.UnraisableHookArgs) -> None:
        if came and isinstance(unraisable.exc_value, KeyboardInterrupt):
            again = threading.Timer(AGAIN, os.kill, (os.getpid(), came.pop()))
            again.daemon = True
            again.start()
        else:
            hook(unraisable)

    hook, sys.unraisablehook = sys.unraisablehook, dropped
    before = {s: signal.getsignal(s) for s in ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, first)
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(128 + (came[0] if came else signal.SIGINT))
    except SystemExit as error:
        if came and error.code == INTERRUPTED:
            sys.exit(128 + came[0])
        raise
    finally:
        sys.unraisablehook = hook
        if not came:  # else the process is ending, and a second signal must end it at once even then
            for number, handler in before.items():
                signal.signal(number, handler)


def _end_in_silence() -> None:
    """All is done, and whatever the interpreter is about to do would print a traceback of its own."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
