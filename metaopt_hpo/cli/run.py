"""`metaopt-hpo run`: carry out a plan; `metaopt-hpo watch`: follow one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from metaopt_hpo.plan.store import Decision
    from metaopt_hpo.trials.record import TrialRecord


def run(
    plan: Annotated[
        Path, typer.Argument(help="plan.toml, as `metaopt-hpo plan` made it or as you edited it.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results. [default: the plan's name without .toml]")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="Engine that runs the trials: optuna (one machine) or ray.")
    ] = "optuna",
    target: Annotated[
        bool, typer.Option("--target", help="Run the target too, on its schedule at the law's lr.")
    ] = False,
    adapt: Annotated[
        bool, typer.Option("--adapt", help="Run the target with MetaOptimize, within the law's interval.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where our own workloads train: cpu, cuda, cuda:1 …")] = "cpu",
    threads: Annotated[int, typer.Option(help="torch threads of a run.", min=1)] = 1,
    workers: Annotated[
        int, typer.Option(help="Pilots at once, decided together; each in a process of its own.", min=1)
    ] = 1,
    most: Annotated[
        int | None, typer.Option("--most", help="Start at most so many runs, then stop.", min=0)
    ] = None,
    page: Annotated[bool, typer.Option(help="Write page.html at the end.")] = True,
) -> None:
    """Run a plan's pilots while they save more than they cost, then with --target the target.

    Interrupt with Ctrl-C at any time and start the same command again: nothing finished is run twice, and the
    decisions are the same. Follow it with: metaopt-hpo watch FOLDER

    Example: metaopt-hpo run plan.toml --target
    """
    from metaopt_hpo.plan.api import Plan
    from metaopt_hpo.plan.costs import PlanError
    from metaopt_hpo.plan.decide import why_none
    from metaopt_hpo.plan.page import write_page
    from metaopt_hpo.plan.run import run as run_plan
    from metaopt_hpo.plan.store import folder_of
    from metaopt_hpo.plan.words import part_of

    folder = out or folder_of(plan)
    began = time.monotonic()
    try:
        result = run_plan(
            Plan.read(plan),
            folder,
            engine=engine,
            target=target,
            adapt=adapt,
            device=device,
            threads=threads,
            workers=workers,
            most=most,
            progress=_say,
        )
    except KeyboardInterrupt:
        typer.echo("interrupted; finished runs are kept, the same command goes on from there", err=True)
        raise typer.Exit(130) from None
    finally:
        if page and (folder / "plan.toml").exists():
            written = write_page(folder)
            typer.echo(f"page written to {written}", err=True)
    if not result.finished:
        if result.pilots:
            raise PlanError(
                f"no pilot has finished, so nothing is known of the lr: {why_none(result.pilots)}"
            )
        typer.echo("no pilot has been run")
        return
    rate = result.lr
    share = result.plan.budget.spent(result.spent, result.plan.target_cost)
    pilots = part_of(len(result.finished), len(result.pilots), "pilot")
    typer.echo(
        f"lr of the target: {rate.value:.3g} (90 % interval {rate.low:.2g} to {rate.high:.2g}), from {pilots}; they "
        f"cost {result.spent.flops / result.plan.target_cost.flops:.1%} of the target's FLOPs, "
        f"{share / result.plan.budget.amount:.0%} of the budget; {time.monotonic() - began:.0f} s"
    )
    if result.target is not None:
        typer.echo(f"target: loss {result.target.loss:.4f}, {result.target.state}")


def _say(decision: Decision, record: TrialRecord | None) -> None:
    from metaopt_hpo.plan.words import decided

    if record is None:
        typer.echo(
            f"{decision.number:>3}  {decided(decision.what, decision.pilot)}: {decision.reason}", err=True
        )
        return
    found = f", found lr {record.found_lr:.3g}" if record.found_lr > 0 else ""
    why = f" ({record.reason})" if record.reason else ""
    typer.echo(f"     {record.state}, loss {record.loss:.4f}{found}{why}", err=True)


def watch(
    place: Annotated[
        Path,
        typer.Argument(help="A plan's file or folder, an Optuna store's file, or a Ray experiment's folder."),
    ],
    once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.2)] = 2.0,
    page: Annotated[bool, typer.Option("--page", help="Keep page.html up to date too.")] = False,
) -> None:
    """Follow a plan: pilots, the law so far, decisions and reasons, the running loss beside what is expected, cost.

    Writes nothing, except the page if you ask for it. Plain text when piped.

    Example: metaopt-hpo watch plan --once
    """
    from metaopt_hpo.plan.watch import follow

    try:
        follow(place, once=once, every=every, page=page)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
