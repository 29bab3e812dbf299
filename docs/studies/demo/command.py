"""Plan, run, recipe and comparison, in one resumable command."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from metaopt_hpo.comparison.results import Comparison
    from metaopt_hpo.plan.run import PlanRun
    from metaopt_hpo.trials.record import TrialRecord

LR = (1e-3, 1e-1)
"""Range of everybody's search; the best lr of width 96 is below its middle."""

BATCH = 1024


def demo(
    out: Annotated[Path, typer.Option(help="Folder of everything.")] = Path("results/demo"),
    width: Annotated[int, typer.Option(help="Width of the target.", min=32)] = 96,
    steps: Annotated[int, typer.Option(help="Optimizer steps of the target.", min=128)] = 1024,
    budget: Annotated[str, typer.Option(help="What the pilots may cost.")] = "25 % of the target",
    runs: Annotated[int, typer.Option(help="Full runs that grid and TPE get each.", min=1)] = 4,
    workers: Annotated[int | None, typer.Option(help="Searches at once. [default: CPUs]", min=1)] = None,
) -> None:
    """From a target and a budget to a recipe and its run, then grid and TPE on the same target: about five minutes.

    Interrupt with Ctrl-C at any time and start the same command again.

    Example: python -m studies.demo --width 64 --steps 512
    """
    from metaopt_hpo.atomic import write_text
    from metaopt_hpo.plan.api import plan as make_plan
    from metaopt_hpo.plan.page import write_page
    from studies.demo.outcome import answer, section

    began = time.monotonic()
    plan = make_plan(
        target=f"width={width}",
        tokens=float(steps * BATCH),
        budget=budget,
        hardware="cpu",
        workload="text-lm",
        batch=BATCH,
        lr=LR,
    )
    plan.write(out / "plan.toml")
    typer.echo(
        f"plan written to {out / 'plan.toml'}: {len(plan.chosen)} pilots, {plan.share:.0%} of the target",
        err=True,
    )
    result = plan.run(out=out / "plan", target=True, progress=_said)
    recipe = plan.recipe(out / "plan")
    recipe.write(out / "recipe.toml")
    write_text(out / "recipe.yaml", recipe.export("yaml"))
    compared = _compare(result, out, runs, workers)
    page = write_page(out / "plan", [section(result, compared)], first=answer(result, compared))
    typer.echo(answer(result, compared))
    typer.echo(f"recipe: {out / 'recipe.toml'}, {out / 'recipe.yaml'}")
    typer.echo(f"pages: {page} and {out / 'report.html'}; {time.monotonic() - began:.0f} s")


def _compare(result: PlanRun, out: Path, runs: int, workers: int | None) -> Comparison:
    from metaopt_hpo.comparison.design import ComparisonPlan
    from metaopt_hpo.comparison.protocol import compare
    from metaopt_hpo.comparison.training_objective import TrainObjective
    from metaopt_hpo.report import report_from_folder
    from metaopt_hpo.workloads import members

    target = result.plan.target
    assert target.width is not None
    compared = compare(
        TrainObjective(members("text-lm", [target.width])),
        ComparisonPlan(
            workload="text-lm",
            methods=("grid", "tpe"),
            seeds=(0,),
            size=target.size,
            pilot_sizes=(),
            tokens=target.tokens,
            batch=BATCH,
            lr_bounds=LR,
            runs=runs,
            pilot_runs=1,
        ),
        out,
        workers=workers,
        progress=lambda study, record: _ended(study, record),
        command="make demo",
    )
    report_from_folder(out)
    return compared


def _said(decision: object, record: TrialRecord | None) -> None:
    if record is None:
        typer.echo(
            f"  {getattr(decision, 'what', '')} {getattr(decision, 'pilot', '')}: {getattr(decision, 'reason', '')}",
            err=True,
        )
    else:
        _ended(record.study, record)


def _ended(study: str, record: TrialRecord) -> None:
    lr = record.found_lr if record.self_tuning and math.isfinite(record.found_lr) else record.lr
    typer.echo(f"    {study}: {record.state}, lr {lr:.3g}, loss {record.loss:.4f}", err=True)
