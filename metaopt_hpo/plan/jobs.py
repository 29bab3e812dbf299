"""What a plan's workload words mean: one of ours by name, a Python file, or a command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metaopt_hpo.comparison.objective import Objective
from metaopt_hpo.plan.costs import PlanError
from metaopt_hpo.plan.model import SELF_TUNING, Plan
from metaopt_hpo.plan.store import JOBS


def objective_of(plan: Plan, folder: Path, *, device: str = "cpu", target: bool = False) -> Objective:
    """What trains a plan's runs, checked: nothing is started.

    Args:
        plan: names workload, options, sizes.
        folder: the plan's; logs of a training program go to `jobs` in it.
        device: for our own workloads.
        target: the target is to be run too, so that the workload must have its size.

    Raises:
        PlanError: the workload lacks a size of the plan, or cannot run MetaOptimize where a pilot needs it.
        JobError: the program cannot be run as described.
    """
    from metaopt_hpo.workloads.registry import FAMILIES

    if not plan.workload.strip():
        raise PlanError("the plan names no workload, so there is nothing to run; add workload = … to it")
    _check_pilots(plan)
    if plan.workload in FAMILIES:
        return _own(plan, device, target)
    from metaopt_hpo.comparison.command_objective import CommandObjective
    from metaopt_hpo.workloads.jobs import job_of

    objective = CommandObjective(job_of(plan.workload, plan.workload_options, (folder / JOBS).resolve()))
    _check_sizes(plan, objective.sizes, target)
    if "own" in objective.job.strategies and any(p.strategy == SELF_TUNING for p in plan.pilots):
        raise PlanError(
            "the plan has pilots that find their own lr, and the command has no place for {strategy}: add it where the "
            "program can run metaoptimize, or make the plan with schedule pilots only"
        )
    return objective


def _check_pilots(plan: Plan) -> None:
    from metaopt_hpo.strategies import get
    from metaopt_hpo.strategies.registry import UnknownStrategy

    for pilot in plan.pilots:
        try:
            get(pilot.strategy)
        except UnknownStrategy as error:
            raise PlanError(f"pilot {pilot.name!r}: {error}") from None
        if pilot.batch > pilot.tokens:
            raise PlanError(
                f"pilot {pilot.name!r} has {pilot.tokens:g} tokens and a batch of {pilot.batch:g}, which is less than "
                "one step; give it more tokens"
            )


def _own(plan: Plan, device: str, target: bool) -> Objective:
    from metaopt_hpo.comparison.training_objective import TrainObjective
    from metaopt_hpo.workloads import members

    widths = {w for p in plan.pilots if (w := p.width) is not None} | set(plan.vary.widths)
    if plan.target.width is not None:
        widths.add(plan.target.width)
    if not widths:
        raise PlanError(
            f"the plan names no widths of workload {plan.workload!r}; make it again, or add them to vary"
        )
    options = {k: _value(v) for k, v in plan.workload_options.items()}
    try:
        family = members(plan.workload, sorted(widths), **options)
    except (ValueError, TypeError) as error:
        raise PlanError(f"workload {plan.workload!r} cannot be made as the plan says: {error}") from error
    objective = TrainObjective(family, device=device)
    _check_sizes(plan, objective.sizes, target)
    return objective


def _check_sizes(plan: Plan, sizes: Sequence[float], target: bool) -> None:
    for name, size in [*((p.name, p.size) for p in plan.pilots), ("the target", plan.target.size)]:
        if not any(abs(size - s) <= 1e-6 * s for s in sizes):
            if name == "the target" and not target and not any(s >= size for s in sizes):
                continue  # its recipe may be wanted without its run
            known = ", ".join(f"{s:g}" for s in sizes)
            raise PlanError(
                f"{name} has {size:g} parameters and workload {plan.workload!r} has {known}; use one of those"
            )


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
