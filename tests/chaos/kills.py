"""Kill a command at random moments, start it again, and hold what it leaves against an undisturbed run."""

from __future__ import annotations

import functools
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import traps

DRIVERS = Path(__file__).with_name("drivers.py")
DOCS = Path(__file__).resolve().parents[2] / "docs"

WAYS = (
    "kill",
    "kill-group",
    "kill-worker",
    "interrupt-group",
    "terminate",
    "hangup-group",
    "interrupt-twice",
    *["trap"] * 4,
)
"""How a command is ended: SIGKILL of the process (its workers are to follow), of the whole group, of one worker;
Ctrl-C; a scheduler's SIGTERM; a closed terminal; Ctrl-C twice; SIGKILL inside a write, a commit or a fit."""

HANG = 600.0
"""Seconds after which a command that has not ended counts as hanging."""


@dataclass
class Tally:
    """What happened over many kills."""

    kills: int = 0
    trapped: int = 0
    """Kills inside a write, a commit or a step of a fit."""
    lost: int = 0
    """Trials said to be finished before a kill and begun again or missing after it."""
    finished: int = 0
    compared: int = 0
    equal: int = 0
    hangs: int = 0
    seconds: float = 0.0
    tracebacks: int = 0
    orphans: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Sum up."""
        for name in (
            "kills",
            "trapped",
            "lost",
            "finished",
            "compared",
            "equal",
            "hangs",
            "seconds",
            "tracebacks",
            "orphans",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.notes += other.notes


class Nursery:
    """The process whose children the commands are; see `drivers.main`."""

    def __init__(self) -> None:
        path = os.pathsep.join(p for p in (str(DOCS), os.environ.get("PYTHONPATH")) if p)
        self._process = subprocess.Popen(
            [sys.executable, str(DRIVERS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            bufsize=0,  # what it says is waited for by select, which sees nothing that has been read ahead
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._say, self._hear = self._process.stdin, self._process.stdout

    def bear(self, *request: str) -> int:
        """Begin a command: its pid. The one before must have ended."""
        self._say.write(json.dumps(request).encode() + b"\n")
        return int(self._hear.readline())

    def heard(self, seconds: float) -> int | None:
        """The command's return code, None where it has not ended after so long."""
        ready = select.select([self._hear], [], [], max(seconds, 0))[0]
        return int(self._hear.readline()) if ready else None


nursery = functools.cache(Nursery)


class Run:
    """One life of a command."""

    def __init__(self, name: str, out: Path, log: Path, trap: str = "") -> None:
        self._log = log
        log.touch()
        self.pid = nursery().bear(name, str(out), str(log), trap)
        self.code: int | None = None

    def text(self) -> str:
        """What it has said."""
        return self._log.read_text()

    def said(self, what: str) -> list[list[str]]:
        """What it has said to be begun, as [work], or to be finished, as [key, work]."""
        # a last line without its end was cut by the kill
        lines = self.text().rpartition("\n")[0].splitlines()
        return [line.split()[1:] for line in lines if line.startswith(what + " ")]

    def begun(self, seconds: float = HANG) -> bool:
        """Wait until its work begins."""
        until = time.monotonic() + seconds
        while "at work" not in self.text():
            if self.ended(0) or time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    def ended(self, seconds: float) -> bool:
        """Wait for its end for so long."""
        if self.code is None:
            self.code = nursery().heard(seconds)
        return self.code is not None

    def end(self, way: str, draw: random.Random) -> None:
        """End it in one of `WAYS`."""
        pid = self.pid
        try:
            if way == "kill":
                os.kill(pid, signal.SIGKILL)
            elif way == "kill-group":
                os.killpg(pid, signal.SIGKILL)
            elif way == "kill-worker":
                os.kill(draw.choice(children(pid) or [pid]), signal.SIGKILL)
            elif way == "terminate":
                os.kill(pid, signal.SIGTERM)
            else:
                number = signal.SIGHUP if way == "hangup-group" else signal.SIGINT
                os.killpg(pid, number)
                if way == "interrupt-twice":
                    time.sleep(draw.uniform(0, 0.2))
                    os.killpg(pid, number)
        except ProcessLookupError:
            pass  # it had ended

    def wait(self, tally: Tally) -> None:
        """Wait for its end, and for that of its workers; note what should not be."""
        if not self.ended(HANG):
            tally.hangs += 1
            tally.notes.append(f"hangs: {self.text()[-300:]}")
            os.killpg(self.pid, signal.SIGKILL)
            self.ended(HANG)
        until = time.monotonic() + 30
        while group(self.pid) and time.monotonic() < until:
            time.sleep(0.02)
        if group(self.pid):
            tally.orphans += 1
            tally.notes.append(f"workers outlive their parent: {group(self.pid)}")
            os.killpg(self.pid, signal.SIGKILL)
        # a closed terminal ends Python's own resource tracker too, which a later one of its kind complains of
        if any("resource_tracker.py" not in part for part in self.text().split("Traceback")[1:]):
            tally.tracebacks += 1
            tally.notes.append(f"traceback: {self.text()[-1500:]}")


def children(pid: int) -> list[int]:
    """Worker processes of a process: not multiprocessing's own helper."""
    found = []
    for each in group(pid):
        command = Path(f"/proc/{each}/cmdline")
        try:
            if each != pid and "spawn_main" in command.read_text():
                found.append(each)
        except OSError:
            continue
    return found


def group(leader: int) -> list[int]:
    """Live processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


def undisturbed(name: str, folder: Path) -> tuple[str, float]:
    """What the command leaves, and how many seconds it works."""
    run = Run(name, folder / "whole", folder / "whole.log")
    assert run.begun(), run.text()
    start = time.monotonic()
    tally = Tally()
    run.wait(tally)
    assert run.code == 0, run.text()
    assert not tally.notes, tally.notes
    return (folder / "whole" / "final.txt").read_text(), time.monotonic() - start


def disturbed(name: str, folder: Path, whole: str, seconds: float, kills: int, seed: int) -> Tally:
    """Kill the command at up to `kills` moments drawn over its working time, then let it end; see `Tally`."""
    draw, tally, start = random.Random(seed), Tally(), time.monotonic()
    out = folder / f"{name}-{seed}"
    known: dict[str, str] = {}
    """Work of every finished trial, by its key."""
    again: list[tuple[str, int]] = []
    """Work that was begun, and how many of its trials had been finished before that life."""
    for life in range(kills + 1):
        way = draw.choice(WAYS) if life < kills else ""
        trap = traps.drawn(name, draw) if way == "trap" else ""
        run = Run(name, out, folder / f"{name}-{seed}-{life}.log", trap)
        delay = draw.uniform(
            0, 0.5 * seconds
        )  # most moments early in a life, so that it ends before the command
        if way and run.begun():
            # there may be no such moment as the trap's in what was left to do
            ended = run.ended(seconds if trap else delay)
            if not ended:
                run.end("kill-group" if trap else way, draw)
            if run.ended(HANG) and run.code:
                tally.kills += 1
                tally.trapped += bool(trap) and ended
        run.wait(tally)
        before = Counter(known.values())
        again += [(work, before[work]) for (work,) in run.said("begun")]
        found = dict(run.said("finished"))
        if run.code == 0 and name.startswith(("compare", "run")):
            # every life says what it found in the store
            tally.lost += len(known.keys() - found.keys())
        known |= found
        if run.code == 0:
            break
    every = Counter(known.values())
    lost = [work for work, done in again if 0 < every[work] <= done]
    tally.lost += len(lost)
    if lost:
        tally.notes.append(f"{name}, seed {seed}: begun again: {lost}")
    tally.finished, tally.seconds = len(known), time.monotonic() - start
    tally.compared = 1
    final = out / "final.txt"
    tally.equal = int(final.exists() and final.read_text() == whole)
    if not tally.equal:
        tally.notes.append(f"{name}, seed {seed}: the final table differs; its files are in {out}")
    return tally
