"""Small forms of the commands that can be resumed, each a process of seconds.

Each ends by writing `final.txt` into its folder: all that the command leaves, but what a clock or a memory gauge
measured, in exact digits. Each says "begun WORK" when a trial's training or a piece of work begins, and "finished KEY
WORK" after it is kept: work that is begun again after all of its kind was finished has been lost.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from traps import VARIABLE, set_trap

from metaopt_hpo.comparison.objective import Configuration, Report, no_report
from metaopt_hpo.comparison.training_objective import TrainObjective
from metaopt_hpo.trials.record import TrialRecord

set_trap()  # here, so that workers have it too


def exact(records: list[TrialRecord]) -> str:
    """Records in exact digits, without times and memory."""
    lines = []
    for r in records:
        curve = None if r.curve is None else replace(r.curve, seconds=())
        lines.append(repr(replace(r, seconds=0.0, memory=0.0, curve=curve)))
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


def compare(out: Path, methods: tuple[str, ...], workers: int, sizes: tuple[int, ...]) -> str:
    """`metaopt-hpo compare`: searches in one process or several."""
    from metaopt_hpo.comparison.protocol import Plan
    from metaopt_hpo.comparison.protocol import compare as run
    from metaopt_hpo.workloads import members

    family = members("regression", list(sizes))
    plan = Plan(
        workload="regression",
        methods=methods,
        seeds=(0,),
        size=float(family[-1].size),
        pilot_sizes=tuple(float(m.size) for m in family[:-1]) if "law" in methods else (),
        tokens=384 * family[0].batch,
        batch=float(family[0].batch),
        lr_bounds=(1e-3, 3e-1),
        runs=3,
        pilot_runs=3,
    )
    found = run(
        Announced(family),
        plan,
        out,
        workers=workers,
        progress=lambda study, record: say(f"finished {study}/{record.trial} {work(record)}"),
    )
    return exact(found.table.records())


def study(out: Path) -> str:
    """`python -m studies.one_run`: cells in a pool."""
    from studies.one_run.cases import cells
    from studies.one_run.runner import run

    some = [c for c in cells(seeds=1, short=True) if c.case.name.startswith("regression")][:4]
    assert some
    table = run(
        some,
        out,
        workers=2,
        progress=lambda done, every, record: say(f"finished {record.trial} {record.trial}"),
    )
    return exact(table.records())


def live(out: Path) -> str:
    """`python -m studies.live_table`: one run after another."""
    from metaopt_hpo.trials.table import TrialTable
    from studies.live_table import configurations, train

    wanted = [replace(c, tokens=2**13) for c in list(configurations())[:12]]
    with announced(TrainObjective, "run", lambda _, c: work(c)):
        train(wanted, out / "live.parquet")
    return exact(TrialTable.read(out / "live.parquet").records())


def gain(out: Path) -> str:
    """`python -m studies.gain`: searches on a table, kept one by one."""
    import math

    import numpy as np
    import pandas as pd

    from metaopt_hpo.trials.table import TrialTable
    from studies.gain import races
    from studies.gain.problems import table_problem

    rows = []
    for n in (1e6, 2e6, 4e6):
        for d in (4e7, 8e7):
            for lr in np.geomspace(1e-3, 1e-1, 9):
                for b in np.geomspace(1e4, 1e5, 4):
                    x, y = math.log(lr / (0.01 * (n / 1e6) ** -0.4)), math.log(b / 3e4)
                    loss = (2 + (n / 1e6) ** -0.3 + (d / 1e7) ** -0.3) * math.exp(0.03 * x * x + 0.02 * y * y)
                    rows.append({"size": n, "tokens": d, "batch": b, "lr": lr, "loss": loss})
    problem = table_problem("toy", TrialTable.from_frame(pd.DataFrame(rows)), (4e6, 8e7))
    with announced(races, "run", lambda _, method, problem, seed, limit: f"{method}-{seed}"):
        frame = races.race_all(
            "optuna", [problem], ["law", "tpe", "random"], 6, out / "gain.parquet", limit=8.0
        )
    return str(frame.to_csv(float_format="%.17g"))


def attribute(out: Path) -> str:
    """`metaopt-hpo attribute`: grids, piece by piece."""
    from metaopt_hpo.attribution import ExperimentConfig, Job, experiment, run_tier
    from metaopt_hpo.attribution.worlds import tier0_worlds

    config = ExperimentConfig(seeds=(0, 1, 2), factors=("schedule",), levels=False, piece=1)
    name, world = next(iter(tier0_worlds().items()))
    assert name
    # said when it is written, by the file's name: a piece that is computed again is written again
    with announced(experiment, "save_grid", lambda result, path, mark: path.name):
        result = run_tier(0, out=out, jobs=[Job(lambda: world, config)])
    assert result is not None
    return str(result.frame().to_csv(float_format="%.17g"))


HEAVY = ("torch", "optuna", "pandas", "pyarrow.parquet", "sqlalchemy", "metaopt_hpo.comparison.protocol",
         "metaopt_hpo.training.run", "metaopt_hpo_optuna.engine", "metaopt_hpo.attribution.tiers",
         "metaopt_hpo.scaling.fitting")  # fmt: skip
"""Loaded before a command begins, so that kills meet its work."""

COMMANDS: dict[str, Callable[[Path], str]] = {
    "compare": lambda out: compare(out, ("grid", "tpe", "asha"), 2, (16,)),
    "compare-one-process": lambda out: compare(out, ("grid", "hyperband"), 1, (16,)),
    "compare-law": lambda out: compare(out, ("grid", "law"), 1, (8, 12, 16, 24)),
    "study": study,
    "live-table": live,
    "gain": gain,
    "attribute": attribute,
}


def main() -> None:
    """Load what commands need, then fork a process for each line of standard input: `[name, out, log, trap]` in JSON.

    Answers with its pid, and with its return code once it has ended. Forked, as loading takes longer than most kills
    are apart; its workers are started as everywhere.
    """
    for module in HEAVY:
        importlib.import_module(module)
    for line in sys.stdin:
        name, out, log, trap = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            for target, path in ((0, os.devnull), (1, log), (2, log)):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), target)
            os.environ[VARIABLE] = trap
            set_trap()
            command(name, Path(out))
            return
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def command(name: str, out: Path) -> None:
    """Run one as the command line does: a signal ends it with 130, an error of ours with one sentence."""
    from metaopt_hpo.atomic import write_text
    from metaopt_hpo.cli.interrupts import interruptible
    from metaopt_hpo.errors import MetaOptError

    for number in (signal.SIGINT, signal.SIGHUP):  # a shell has background processes ignore them
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    out.mkdir(parents=True, exist_ok=True)
    say("at work")
    try:
        with interruptible():
            write_text(out / "final.txt", COMMANDS[name](out))
    except MetaOptError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    import drivers

    drivers.main()  # of the module that workers find by its name
