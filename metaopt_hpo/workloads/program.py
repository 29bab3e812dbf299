"""One run of a program: its logs kept, its time limited, and nothing of it left when this process ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metaopt_hpo.workloads import _supervise

SUPERVISOR = Path(_supervise.__file__)
STDOUT, STDERR = "stdout.log", "stderr.log"
TAIL = 4000
"""Bytes at the end of a log in which the reason of a failure is looked for."""

MEMORY_WORDS = ("out of memory", "outofmemory", "cannot allocate memory", "memoryerror", "bad_alloc")
NAN_WORDS = re.compile(
    r"(?<![\w./'\"-])nans?(?![\w./'\"-]*\w)|nan/inf|inf/nan"
    r"|not finite|non-?finite|\binf(inite)? loss|loss is inf|diverged"
)
"""Of a loss that was not finite; a module or a path may be called so."""


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        code: exit code; above 128 it was ended by signal code − 128.
        seconds: wall clock.
        timed_out: it ran past its limit and was ended.
        stopped: why `look` wanted it to end; None where it did not.
        said: the last line of its standard error, or of its output where that is empty.
        out_of_memory: its last words, or the signal that ended it, say that memory ran out.
        not_finite: its last words say that the loss was not finite.
    """

    code: int
    seconds: float
    timed_out: bool
    stopped: str | None
    said: str
    out_of_memory: bool
    not_finite: bool

    @property
    def how(self) -> str:
        """In words, for a reason."""
        if self.code > 128:
            try:
                name = signal.Signals(self.code - 128).name
            except ValueError:
                name = str(self.code - 128)
            return f"was ended by {name}"
        return f"ended with exit code {self.code}"


def run(
    argv: Sequence[str],
    folder: Path,
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
    look: Callable[[], str | None] = lambda: None,
    every: float = 0.25,
) -> Ended:
    """Run a program to its end, its limit, or until `look` gives a reason.

    Args:
        argv: program and arguments; no shell reads them.
        folder: where `stdout.log` and `stderr.log` are written; those of an earlier attempt are kept as `….1`, `….2`.
        cwd: working directory (default: this process's).
        environment: variables beside this process's own.
        timeout: seconds.
        look: called every `every` seconds or so, and less often where it is slow itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / STDOUT, folder / STDERR]
    for log in logs:
        _put_aside(log)
    began = time.monotonic()
    stopped: str | None = None
    timed_out = False
    with logs[0].open("wb") as out, logs[1].open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-S", "-E", str(SUPERVISOR), *argv],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            start_new_session=True,  # Ctrl-C reaches us first
        )
        try:
            pause = min(every, 0.02)
            while True:
                try:
                    process.wait(pause)
                    break
                except subprocess.TimeoutExpired:
                    pass
                if stopped is not None or timed_out:
                    continue
                looked = time.monotonic()
                stopped = look()
                # a look at large logs may take long: it shall take a twentieth of the time
                pause = min(max(every, 20 * (time.monotonic() - looked)), 30.0, 2 * pause + 0.02)
                timed_out = timeout is not None and time.monotonic() - began > timeout
                if stopped is not None or timed_out:
                    process.terminate()
        except BaseException:
            process.terminate()
            process.wait(_supervise.PATIENCE + 5)
            raise
        finally:
            if process.stdin is not None:
                process.stdin.close()
    words = tail(logs[1]) or tail(logs[0])
    last = next((line.strip() for line in reversed(words.splitlines()) if line.strip()), "")
    low = words.lower()
    memory = any(w in low for w in MEMORY_WORDS) or (process.returncode == 128 + 9 and not timed_out)
    return Ended(
        code=process.returncode,
        seconds=time.monotonic() - began,
        timed_out=timed_out,
        stopped=stopped,
        said=last[:300],
        out_of_memory=process.returncode != 0 and stopped is None and memory,
        not_finite=process.returncode != 0 and NAN_WORDS.search(last.lower()) is not None,
    )


def tail(path: Path) -> str:
    """The end of a log as text, whatever bytes are in it."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL))
            return file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _put_aside(log: Path) -> None:
    if log.exists():
        number = 1
        while (kept := log.with_name(f"{log.name}.{number}")).exists():
            number += 1
        log.rename(kept)
