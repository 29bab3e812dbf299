"""How long a run's ramp should be over AdamW: `python -m studies.one_run.ramps`.

Whole runs on jobs outside the study, with the ramp over a twentieth or a tenth of the run and several corrections,
beside the best WSD schedule (rates a factor of two apart): the second table of `studies.one_run.lion`, over AdamW.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from studies import run as commands
from studies.one_run.corrections import BEGIN, KEY, tune
from studies.one_run.kept import read
from studies.one_run.lion import keep_whole, tuned, whole_table

KEPT = Path(__file__).parent / "ramps.parquet"
JOBS = ("teach32", "shortgru32", "shorttf32", "teach128", "shorttf64", "shorttf16")
STEPS = 2000
SEED = 800
WHOLE = tuple({"warmup": w, "correction": c} for w in (0.05, 0.1) for c in (0.9, 1.2))
"""Options of the runs; the correction in use is 0.9, and a short ramp might ask for a larger one."""


def study(
    out: Annotated[
        Path, typer.Option(help="Parquet file of the runs; finished ones are not repeated.")
    ] = KEPT,
    jobs: Annotated[str, typer.Option(help="Jobs, by comma.")] = ",".join(JOBS),
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """How long a run's ramp should be over AdamW, on jobs outside the study.

    Example: python -m studies.one_run.ramps --jobs teach32
    """
    torch.set_num_threads(1)
    for name in [] if report_only else jobs.split(","):
        key = {"job": name, "steps": STEPS, "seed": SEED}
        tune(out, key, BEGIN)
        keep_whole(out, key, "adamw", WHOLE)
    table = read(out, KEY)
    schedules, best = tuned(table)
    typer.echo(whole_table(table, schedules, best, WHOLE))


if __name__ == "__main__":
    commands.run(study)
