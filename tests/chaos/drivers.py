"""Small forms of the commands that can be resumed, each a process of seconds: `python drivers.py NAME OUT`.

Each ends by writing `final.txt` into OUT: all that the command leaves, but what a clock or a memory gauge measured, in
exact digits. Each says "finished KEY" for a trial after it is kept.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from metaopt_hpo.trials.record import TrialRecord


def exact(records: list[TrialRecord]) -> str:
    """Records in exact digits, without times and memory."""
    lines = []
    for r in records:
        curve = None if r.curve is None else replace(r.curve, seconds=())
        lines.append(repr(replace(r, seconds=0.0, memory=0.0, curve=curve)))
    return "\n".join(lines) + "\n"


def say(key: str) -> None:
    """A trial is finished and kept."""
    print(f"finished {key}", flush=True)


def compare(out: Path, methods: tuple[str, ...], workers: int, sizes: tuple[int, ...]) -> str:
    """`metaopt-hpo compare`: searches in one process or several."""
    from metaopt_hpo.comparison.protocol import Plan
    from metaopt_hpo.comparison.protocol import compare as run
    from metaopt_hpo.comparison.training_objective import TrainObjective
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
        TrainObjective(family),
        plan,
        out,
        workers=workers,
        progress=lambda study, record: say(f"{study}/{record.trial}"),
    )
    return exact(found.table.records())


def study(out: Path) -> str:
    """`python -m studies.one_run`: cells in a pool."""
    from studies.one_run.cases import cells
    from studies.one_run.runner import run

    some = [c for c in cells(seeds=1, short=True) if c.case.name.startswith("regression")][:4]
    assert some
    table = run(some, out, workers=2, progress=lambda done, every, record: say(record.trial))
    return exact(table.records())


def live(out: Path) -> str:
    """`python -m studies.live_table`: one run after another."""
    from metaopt_hpo.trials.table import TrialTable
    from studies.live_table import configurations, train

    wanted = [replace(c, tokens=2**13) for c in list(configurations())[:5]]
    train(wanted, out / "live.parquet")
    return exact(TrialTable.read(out / "live.parquet").records())


def gain(out: Path) -> str:
    """`python -m studies.gain`: searches on a table, kept one by one."""
    import math

    import numpy as np
    import pandas as pd

    from metaopt_hpo.trials.table import TrialTable
    from studies.gain.problems import table_problem
    from studies.gain.races import race_all

    rows = []
    for n in (1e6, 2e6, 4e6):
        for d in (4e7, 8e7):
            for lr in np.geomspace(1e-3, 1e-1, 9):
                for b in np.geomspace(1e4, 1e5, 4):
                    x, y = math.log(lr / (0.01 * (n / 1e6) ** -0.4)), math.log(b / 3e4)
                    loss = (2 + (n / 1e6) ** -0.3 + (d / 1e7) ** -0.3) * math.exp(0.03 * x * x + 0.02 * y * y)
                    rows.append({"size": n, "tokens": d, "batch": b, "lr": lr, "loss": loss})
    problem = table_problem("toy", TrialTable.from_frame(pd.DataFrame(rows)), (4e6, 8e7))
    frame = race_all("optuna", [problem], ["law", "tpe", "random"], 2, out / "gain.parquet", limit=8.0)
    return str(frame.to_csv(float_format="%.17g"))


def attribute(out: Path) -> str:
    """`metaopt-hpo attribute`: grids, piece by piece."""
    from metaopt_hpo.attribution import ExperimentConfig, Job, run_tier
    from metaopt_hpo.attribution.worlds import tier0_worlds

    config = ExperimentConfig(seeds=(0, 1, 2), factors=("schedule",), levels=False, piece=1)
    name, world = next(iter(tier0_worlds().items()))
    assert name
    result = run_tier(0, out=out, jobs=[Job(lambda: world, config)])
    assert result is not None
    return str(result.frame().to_csv(float_format="%.17g"))


COMMANDS: dict[str, Callable[[Path], str]] = {
    "compare": lambda out: compare(out, ("grid", "tpe", "asha"), 2, (16,)),
    "compare-one-process": lambda out: compare(out, ("grid", "hyperband"), 1, (16,)),
    "compare-law": lambda out: compare(out, ("grid", "law"), 2, (8, 12, 16, 24)),
    "study": study,
    "live-table": live,
    "gain": gain,
    "attribute": attribute,
}


def main() -> None:
    """Run one command as the command line does: a signal ends it with 130, an error of ours with one sentence."""
    from metaopt_hpo.atomic import write_text
    from metaopt_hpo.cli.interrupts import interruptible
    from metaopt_hpo.errors import MetaOptError

    name, out = sys.argv[1], Path(sys.argv[2])
    for number in (signal.SIGINT, signal.SIGHUP):  # a shell has background processes ignore them
        signal.signal(number, signal.SIG_DFL)
    out.mkdir(parents=True, exist_ok=True)
    print("begun", flush=True)
    try:
        with interruptible():
            write_text(out / "final.txt", COMMANDS[name](out))
    except MetaOptError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
