"""Kill a command at random moments, start it again, and hold what it leaves against an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

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
)
"""How a command is ended: SIGKILL of the process (its workers are to follow), of the whole group, of one worker;
Ctrl-C; a scheduler's SIGTERM; a closed terminal; Ctrl-C twice."""

HANG = 600.0
"""Seconds after which a command that has not ended counts as hanging."""


@dataclass
class Tally:
    """What happened over many kills."""

    kills: int = 0
    inside: int = 0
    """Kills after the command's own imports."""
    lost: int = 0
    """Trials said to be finished before a kill and run again or missing after it."""
    finished: int = 0
    compared: int = 0
    equal: int = 0
    hangs: int = 0
    tracebacks: int = 0
    orphans: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Sum up."""
        for name in (
            "kills",
            "inside",
            "lost",
            "finished",
            "compared",
            "equal",
            "hangs",
            "tracebacks",
            "orphans",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.notes += other.notes


class Run:
    """One life of a command."""

    def __init__(self, name: str, out: Path, log: Path) -> None:
        self._log = log
        self._file = log.open("w+")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in (str(DOCS), os.environ.get("PYTHONPATH")) if p),
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVERS), name, str(out)],
            stdout=self._file,
            stderr=self._file,
            env=environment,
            start_new_session=True,
        )

    def text(self) -> str:
        """What it has said."""
        return self._log.read_text()

    def finished(self) -> list[str]:
        """Keys of the trials it has said to be finished."""
        return [
            line.removeprefix("finished ")
            for line in self.text().splitlines()
            if line.startswith("finished ")
        ]

    def begun(self, seconds: float = HANG) -> bool:
        """Wait until its work begins."""
        until = time.monotonic() + seconds
        while "begun" not in self.text():
            if self.process.poll() is not None or time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    def end(self, way: str, draw: random.Random) -> None:
        """End it in one of `WAYS`."""
        pid = self.process.pid
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
        try:
            self.process.wait(HANG)
        except subprocess.TimeoutExpired:
            tally.hangs += 1
            tally.notes.append(f"hangs: {self.text()[-300:]}")
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        until = time.monotonic() + 30
        while group(self.process.pid) and time.monotonic() < until:
            time.sleep(0.02)
        if group(self.process.pid):
            tally.orphans += 1
            tally.notes.append(f"workers outlive their parent: {group(self.process.pid)}")
            os.killpg(self.process.pid, signal.SIGKILL)
        # a closed terminal ends Python's own resource tracker too, which a later one of its kind complains of
        if any("resource_tracker.py" not in part for part in self.text().split("Traceback")[1:]):
            tally.tracebacks += 1
            tally.notes.append(f"traceback: {self.text()[-1500:]}")
        self._file.close()


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
    assert run.process.returncode == 0, run.text()
    assert not tally.notes, tally.notes
    return (folder / "whole" / "final.txt").read_text(), time.monotonic() - start


def disturbed(name: str, folder: Path, whole: str, seconds: float, kills: int, seed: int) -> Tally:
    """Kill the command at up to `kills` moments drawn over its working time, then let it end; see `Tally`."""
    draw, tally = random.Random(seed), Tally()
    out = folder / f"{name}-{seed}"
    known: set[str] = set()
    for life in range(kills + 1):
        run = Run(name, out, folder / f"{name}-{seed}-{life}.log")
        last = life == kills
        if not last and run.begun():
            # most moments early in a life, so that a life ends before the command does
            time.sleep(draw.uniform(0, 0.5 * seconds))
            if run.process.poll() is None:
                tally.inside += 1
            run.end(draw.choice(WAYS), draw)
            tally.kills += 1
        run.wait(tally)
        said = run.finished()
        if said and name.startswith("compare"):
            # every life says first what it found in the store
            tally.lost += len({k for k in known if k not in said}) if run.process.returncode == 0 else 0
        known |= set(said)
        if run.process.returncode == 0:
            break
    tally.finished = len(known)
    tally.compared = 1
    final = out / "final.txt"
    tally.equal = int(final.exists() and final.read_text() == whole)
    if not tally.equal:
        tally.notes.append(f"{name}, seed {seed}: the final table differs; its files are in {out}")
    if final.exists() and not name.startswith("compare"):
        tally.lost += sum(k not in final.read_text() for k in known)
    return tally
