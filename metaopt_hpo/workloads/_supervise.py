"""Runs a program and ends it with everything it started when its parent ends: `python -S _supervise.py COMMAND …`.

Standard input is a pipe from the parent; it closes when the parent ends, however it ends. Only the standard library
is imported, so that a start costs some ten milliseconds.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

PATIENCE = 10.0
"""Seconds between asking a program to end and ending it."""

NOT_STARTED = 127


def main(argv: list[str]) -> int:
    """Run `argv`; its exit code, negative for a signal as `subprocess` gives it."""
    pipe = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    try:
        child = subprocess.Popen(argv, start_new_session=True)
    except OSError as error:
        print(f"cannot start {argv[0]!r}: {error.strerror or error}", file=sys.stderr)
        return NOT_STARTED
    signal.signal(signal.SIGTERM, lambda *_: _end(child))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_watch, args=(pipe, child), daemon=True).start()
    code = child.wait()
    _signal(child.pid, signal.SIGKILL)  # what it left behind: data loaders, other ranks
    return code


def _watch(pipe: int, child: "subprocess.Popen[bytes]") -> None:
    while os.read(pipe, 1):
        pass
    _end(child)


def _end(child: "subprocess.Popen[bytes]") -> None:
    _signal(child.pid, signal.SIGTERM)

    def later() -> None:
        time.sleep(PATIENCE)
        _signal(child.pid, signal.SIGKILL)

    threading.Thread(target=later, daemon=True).start()


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    ended = main(sys.argv[1:])
    # a signal's number reaches the parent as the shell's convention has it
    os._exit(ended if ended >= 0 else 128 - ended)
