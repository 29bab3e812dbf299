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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saying import Announced, AnnouncedProgram, announced, exact, say, work
from traps import VARIABLE, set_trap

from metaopt_hpo.atomic import write_text
from metaopt_hpo.comparison.training_objective import TrainObjective

if TYPE_CHECKING:
    import numpy as np

    from metaopt_hpo.trials.record import TrialRecord
    from metaopt_hpo.trials.table import TrialTable


def compare(out: Path, methods: tuple[str, ...], workers: int, sizes: tuple[int, ...]) -> str:
    """`metaopt-hpo compare`: searches in one process or several."""
    from metaopt_hpo.comparison.design import ComparisonPlan
    from metaopt_hpo.comparison.protocol import compare as run
    from metaopt_hpo.workloads import members

    family = members("regression", list(sizes))
    plan = ComparisonPlan(
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


def plan(out: Path, workload: str) -> str:
    """`metaopt-hpo run`: a plan's pilots, its target, and its page; of our workload, or of a program of one's own."""
    from metaopt_hpo import plan as make
    from metaopt_hpo.cli import run as command
    from metaopt_hpo.comparison import command_objective, training_objective
    from metaopt_hpo.plan import store

    def told(decision: store.Decision, record: TrialRecord | None) -> None:
        if record is not None:
            say(f"finished {record.study} {work(record)}")

    command._say = told
    training_objective.TrainObjective = Announced  # type: ignore[misc]
    command_objective.CommandObjective = AnnouncedProgram  # type: ignore[misc]
    options: dict[str, Any] = {"workload": workload, "target": "width=24", "widths": [8, 12, 16]}
    if workload != "regression":
        job = out / "job.py"
        write_text(job, PROGRAM)
        options |= {"workload": f"{sys.executable} {job} {{width}} {{lr}} {{steps}} {{strategy}} {{out}}"}
        options |= {"target": 889, "sizes": [169, 301, 465]}
        options |= {"workload_options": {"sizes": "8:169,12:301,16:465,24:889", "batch": "32"}}
    file = out / "plan.toml"
    if not file.exists():
        make(
            tokens=2**16, budget="100 % of the target", hardware="cpu", base=[], batch=32.0, lr=(1e-3, 3e-1),
            **options,
        ).write(file)  # fmt: skip
    command.run(file, target=True)
    found = store.read(out / "plan")
    assert "</html>" in (out / "plan" / "page.html").read_text(encoding="utf-8")
    return exact(list(found.records)) + (out / "plan" / store.DECISIONS_FILE).read_text()


PROGRAM = """
import json, math, sys, time
width, lr, steps, strategy, out = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
best = 0.02 * width ** -0.6
if strategy == "metaoptimize":
    lr = best * (0.8 + 0.01 * width)
    open(out + "/found.json", "w").write(json.dumps({"found_lr": lr}))
for i in range(1, 9):
    loss = (2 + 40 * width ** -0.8) * math.exp(0.05 * math.log(lr / best) ** 2) + 3 * (1 - i / 8)
    print(json.dumps({"step": steps * i // 8, "val_loss": loss}), flush=True)
    time.sleep(0.1)
"""
"""Trains nothing; its loss is a function of what it is given."""


def replay(out: Path) -> str:
    """`metaopt-hpo replay`: keeps nothing before its page, so it begins anew."""
    import numpy as np

    from metaopt_hpo.comparison.replay import replay as run
    from metaopt_hpo.comparison.table_objective import TableObjective
    from metaopt_hpo.report.replay_page import replay_page

    page = out / "replay.html"
    assert not page.exists() or "</html>" in page.read_text(encoding="utf-8")
    objective = TableObjective(bowls(np.geomspace(1e-3, 1e-1, 9)))
    result = run(objective, (4e6, 8e7), methods=("law", "tpe", "random", "asha"), seeds=4, limit=12.0)
    write_text(page, replay_page(result, "bowls"))
    return str(result.trace.to_csv(float_format="%.17g")) + page.read_text(encoding="utf-8")


def attribute_engine(out: Path) -> str:
    """`metaopt-hpo attribute --tier 3`: every grid a study of an engine."""
    from metaopt_hpo.attribution import ExperimentConfig
    from metaopt_hpo.attribution.engine_runs import run_with_engine
    from metaopt_hpo.workloads import members

    class Few(ExperimentConfig):
        """One of its cells: what an experiment may not, a command that is killed must."""

        @property
        def cells(self) -> tuple[np.ndarray, np.ndarray]:
            d, b = super().cells
            return d[:1], b[:1]

    config = Few(
        tokens=(2048, 4096, 8192, 16384, 65536),
        batch=(16, 32, 64, 128),
        seeds=(0, 1, 2),
        factors=("schedule",),
        method="pairs",
        levels=False,
        base_noise="minibatch",
    )
    family = members("regression", [16])
    with announced(TrainObjective, "run_saved", lambda _, c, *rest: work(c)):
        ran = run_with_engine("optuna", None, config, objective=TrainObjective(family), points=5, store=out)
    return repr(ran.grids[0].criteria.tolist())


def bowls(rates: np.ndarray) -> TrialTable:
    """Runs whose loss is a bowl over lr and batch, its middle moving with size."""
    import math

    import numpy as np
    import pandas as pd

    from metaopt_hpo.trials.table import TrialTable

    rows = []
    for n in (1e6, 2e6, 4e6):
        for d in (4e7, 8e7):
            for lr in rates:
                for b in np.geomspace(1e4, 1e5, 4):
                    x, y = math.log(lr / (0.01 * (n / 1e6) ** -0.4)), math.log(b / 3e4)
                    loss = (2 + (n / 1e6) ** -0.3 + (d / 1e7) ** -0.3) * math.exp(0.03 * x * x + 0.02 * y * y)
                    rows.append({"size": n, "tokens": d, "batch": b, "lr": lr, "loss": loss})
    return TrialTable.from_frame(pd.DataFrame(rows))


def gain(out: Path) -> str:
    """`python -m studies.gain`: searches on a table, kept one by one."""
    import numpy as np

    from studies.gain import races
    from studies.gain.problems import table_problem

    problem = table_problem("toy", bowls(np.geomspace(1e-3, 1e-1, 9)), (4e6, 8e7))
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
         "metaopt_hpo.scaling.build", "metaopt_hpo.plan.run", "metaopt_hpo.plan.page",
         "metaopt_hpo.report.replay_page")  # fmt: skip
"""Loaded before a command begins, so that kills meet its work."""

COMMANDS: dict[str, Callable[[Path], str]] = {
    "compare": lambda out: compare(out, ("grid", "tpe", "asha"), 2, (16,)),
    "compare-one-process": lambda out: compare(out, ("grid", "hyperband"), 1, (16,)),
    "compare-law": lambda out: compare(out, ("grid", "law"), 1, (8, 12, 16, 24)),
    "study": study,
    "live-table": live,
    "gain": gain,
    "attribute": attribute,
    "attribute-engine": attribute_engine,
    "replay": replay,
    "run": lambda out: plan(out, "regression"),
    "run-program": lambda out: plan(out, "program"),
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
    from typer import Exit

    from metaopt_hpo.cli.interrupts import interruptible
    from metaopt_hpo.errors import MetaOptError

    for number in (signal.SIGINT, signal.SIGHUP):  # a shell has background processes ignore them
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    out.mkdir(parents=True, exist_ok=True)
    say("at work")
    try:
        with interruptible():
            try:
                write_text(out / "final.txt", COMMANDS[name](out))
            except Exit as ended:
                sys.exit(ended.exit_code)
    except MetaOptError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    import drivers

    drivers.main()  # of the module that workers find by its name
