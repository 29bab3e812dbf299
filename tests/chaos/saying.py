"""What the commands say of their work, and what they leave in exact digits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from traps import set_trap

from metaopt_hpo.comparison.command_objective import CommandObjective
from metaopt_hpo.comparison.objective import Configuration, Report, no_report
from metaopt_hpo.comparison.training_objective import TrainObjective
from metaopt_hpo.trials.record import TrialRecord

set_trap()  # here, so that workers have it too


def exact(records: list[TrialRecord]) -> str:
    """Records in exact digits, without times, memory, energy, and where a program's logs lie."""
    lines = []
    for r in records:
        curve = None if r.curve is None else replace(r.curve, seconds=())
        params = {k: v for k, v in r.params.items() if k not in ("logs", "attempts")}
        same: dict[str, Any] = {"energy_source": "unavailable", "params": params, "curve": curve}
        lines.append(repr(replace(r, seconds=0.0, memory=0.0, joules=0.0, **same)))
    return "\n".join(lines) + "\n"


def say(what: str) -> None:
    """One line at once, which no other process's line comes into."""
    sys.stdout.write(what + "\n")
    sys.stdout.flush()


def work(c: Configuration | TrialRecord) -> str:
    """A run by what is trained in it."""
    tokens = c.tokens if isinstance(c, Configuration) else c.target_tokens
    return f"{c.strategy}:{c.size:.0f}:{tokens:.0f}:{c.batch:.0f}:{c.lr!r}:{c.seed}"


class Announced(TrainObjective):
    """Training that says what it begins."""

    def run(self, configuration: Configuration, report: Report = no_report) -> TrialRecord:
        """As `TrainObjective.run`."""
        say(f"begun {work(configuration)}")
        return super().run(configuration, report)

    def run_saved(self, configuration: Configuration, report: Report, checkpoint: Path) -> TrialRecord:
        """As `TrainObjective.run_saved`."""
        say(f"begun {work(configuration)}")
        return super().run_saved(configuration, report, checkpoint)


class AnnouncedProgram(CommandObjective):
    """A training program that says when it is started."""

    def run(self, configuration: Configuration, report: Report = no_report) -> TrialRecord:
        """As `CommandObjective.run`."""
        say(f"begun {work(configuration)}")
        return super().run(configuration, report)

    def run_saved(self, configuration: Configuration, report: Report, checkpoint: Path) -> TrialRecord:
        """As `CommandObjective.run_saved`."""
        say(f"begun {work(configuration)}")
        return super().run_saved(configuration, report, checkpoint)


@contextmanager
def announced(owner: object, name: str, key: Callable[..., str]) -> Iterator[None]:
    """A function of a module says what it begins, and what it began before as finished: that is kept by then."""
    inner = getattr(owner, name)
    last: list[str] = []

    def said(*args: object, **options: object) -> object:
        for before in last:
            say(f"finished {before} {before}")
        last[:] = [key(*args, **options)]
        say(f"begun {last[0]}")
        return inner(*args, **options)

    setattr(owner, name, said)
    try:
        yield
        for before in last:
            say(f"finished {before} {before}")
    finally:
        setattr(owner, name, inner)
