"""The command of the race: seed by seed, resumable, one table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from metaopt_hpo.plan.api import Plan

LR = "1e-5,1e-1"
"""Everybody's range, that of Optuna's own tutorials; the target's best lr lies in its upper third, off the centre."""

BATCH = 1024
METHODS = ("grid", "tpe", "gp", "asha")


def race(
    out: Annotated[Path, typer.Option(help="Folder of everything.")] = Path("results/race"),
    width: Annotated[int, typer.Option(help="Width of the target.", min=16)] = 272,
    steps: Annotated[int, typer.Option(help="Optimizer steps of the target.", min=64)] = 1536,
    pilots: Annotated[str, typer.Option(help="Widths of the pilots.")] = "16,24,32,48",
    lr: Annotated[str, typer.Option(help="Lowest and highest learning rate of every method.")] = LR,
    runs: Annotated[
        int, typer.Option(help="Full runs that each method gets, the plan's included.", min=1)
    ] = 6,
    seeds: Annotated[int, typer.Option(help="Seeds.", min=1)] = 5,
    budget: Annotated[str, typer.Option(help="What pilots may cost.")] = "15 % of the target",
    workers: Annotated[int | None, typer.Option(help="Searches at once. [default: CPUs]", min=1)] = None,
    kept: Annotated[
        Path | None, typer.Option(help="Parquet file of all runs. [default: race.parquet beside this study]")
    ] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """A plan against TPE, GP, ASHA and grid on text-lm: target runs until within 0.5 % of the best of all.

    At the defaults about 1.78 M parameters, 32 times the largest pilot: some ten minutes a run on one core. Interrupt
    with Ctrl-C at any time and start the same command again. The other methods' runs of a seed that are in the kept
    file are not made again; a plan is, unless it is in the folder, for what it does may change with the package.

    Example: python -m studies.race --width 64 --steps 256 --pilots 16,24,32 --seeds 1 --runs 3
    """
    from metaopt_hpo.comparison.design import ComparisonPlan as Comparing
    from metaopt_hpo.comparison.protocol import compare
    from metaopt_hpo.comparison.training_objective import TrainObjective
    from metaopt_hpo.plan.api import plan
    from metaopt_hpo.trials.table import TrialTable
    from metaopt_hpo.workloads import members
    from studies.race import outcome

    widths = [int(w) for w in pilots.split(",")]
    low, high = (float(x) for x in lr.split(","))
    file = kept or outcome.KEPT
    for seed in [] if report_only else range(seeds):
        folder = out / f"seed{seed}"
        made = plan(
            target=f"width={width}",
            tokens=float(steps * BATCH),
            budget=budget,
            hardware="cpu",
            workload="text-lm",
            batch=BATCH,
            lr=(low, high),
            widths=widths,
        )
        seeded = _seeded(made, seed)
        cell = seeded.target.size, seeded.target.tokens
        if folder.name not in outcome.kept_seeds(file, cell):
            compare(
                TrainObjective(members("text-lm", [width])),
                Comparing(
                    workload="text-lm",
                    methods=METHODS,
                    seeds=(seed,),
                    size=seeded.target.size,
                    pilot_sizes=(),
                    tokens=seeded.target.tokens,
                    batch=BATCH,
                    lr_bounds=(low, high),
                    runs=runs,
                    pilot_runs=1,
                ),
                folder / "others",
                workers=workers,
                progress=lambda study, r: typer.echo(
                    f"  {study}: lr {r.lr:.3g}, {r.state}, {r.loss:.4f}", err=True
                ),
                command="python -m studies.race",
            )
        result = seeded.run(out=folder / "plan", target=True)
        assert result.target is not None
        typer.echo(f"seed {seed}: plan, lr {result.lr.value:.3g}, loss {result.target.loss:.4f}", err=True)
        outcome.gather(out, file, cell).write(file)
    if not file.exists():
        raise outcome.RaceError(
            f"no seed of the race has finished: there is no {file}; run: python -m studies.race"
        )
    typer.echo(outcome.table(outcome.seeds_of(TrialTable.read(file).records())).markdown())


def _seeded(made: Plan, seed: int) -> Plan:
    """The plan with every run from another seed: its pilots and its target."""
    pilots = tuple(replace(p, seed=seed) for p in made.pilots)
    return replace(made, pilots=pilots, vary=replace(made.vary, seeds=(seed,)))
