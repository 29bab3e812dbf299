"""Which sizes pilots may have: a workload's own members, or a ladder of sizes below the target."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from metaopt_hpo.plan.costs import PlanError
from metaopt_hpo.plan.model import Target
from metaopt_hpo.plan.words import number

LADDER = 10
"""Sizes below the target, each half the next; the largest is a quarter of it."""

SMALLEST = 1e6
"""Parameters below which language models of the ladder are not like the target; smaller targets have smaller ones."""

NEAR = 0.05
"""How far, relatively, a member's size may be from the one that was asked for."""


@dataclass(frozen=True)
class Member:
    """One size of a workload."""

    size: float
    width: int | None = None
    batch: float | None = None
    flops_per_token: float | None = None


def built_in(workload: str) -> bool:
    """Whether a workload is one of ours."""
    from metaopt_hpo.workloads.registry import FAMILIES

    return workload in FAMILIES


def of_workload(workload: str, target: Target, widths: Sequence[int]) -> tuple[Target, tuple[Member, ...]]:
    """The target's own member and those that pilots may be, ascending.

    Raises:
        PlanError: the workload has no member of the target's size, or none below it.
    """
    from metaopt_hpo.workloads.registry import workload_class

    cls = workload_class(workload)

    def member(width: int) -> Member | None:
        try:
            made = cls(width=width)
        except ValueError:
            return None
        return Member(float(made.size), width, float(made.batch), None)

    width = target.width or _width_of(member, target.size)
    own = None if width is None else member(width)
    if own is None or (target.width is None and abs(own.size / target.size - 1.0) > NEAR):
        near = "" if own is None else f"; its width {own.width} has {own.size:.4g}"
        raise PlanError(f"workload {workload} has no member of {target.size:.4g} parameters{near}")
    chosen = list(widths)
    if not chosen:
        chosen = _default_widths(cls, own.width or 1)
    found = [m for m in map(member, chosen) if m is not None]
    if len(found) < len(chosen):
        raise PlanError(
            f"workload {workload} has no member of width {next(w for w in chosen if member(w) is None)}"
        )
    batch = target.batch or own.batch
    flops = float(cls(width=own.width).flops_per_token)
    settled = replace(target, size=own.size, width=own.width, batch=batch, flops_per_token=flops)
    priced = tuple(replace(m, flops_per_token=float(cls(width=m.width).flops_per_token)) for m in found)
    return settled, priced


def of_job(
    workload: str, options: Mapping[str, str], target: Target
) -> tuple[Target, tuple[Member, ...], bool]:
    """The target's batch, the sizes below it of a training program, and whether it can run MetaOptimize.

    Raises:
        JobError: the program cannot be run as described; nothing is started.
        PlanError: it has no size below the target's.
    """
    from metaopt_hpo.workloads.jobs import job_of

    job = job_of(workload, options, Path("jobs"))
    found = []
    for value, size in sorted(job.sizes.items(), key=lambda item: item[1]):
        width = int(value) if str(value).isdigit() else None
        if size < target.size:
            found.append(Member(float(size), width, float(job.batch)))
    if not found:
        largest = max(job.sizes.values())
        raise PlanError(
            f"workload {job.name} has no size below the target's {target.size:.4g}; its largest is {largest:.4g}"
        )
    if any(m.width is None for m in found):
        found = [replace(m, width=None) for m in found]
    return replace(target, batch=target.batch or float(job.batch)), tuple(found), "own" not in job.strategies


def ladder(target: Target) -> tuple[Member, ...]:
    """Halves of the target's size, rounded to two digits, ascending."""
    least = min(SMALLEST, target.size / 64.0)
    sizes = [float(f"{target.size / 2.0**k:.2g}") for k in range(2, 2 + LADDER)]
    return tuple(Member(s) for s in sorted(s for s in sizes if s >= least))


def given(sizes: Sequence[float], widths: Sequence[int]) -> tuple[Member, ...]:
    """Sizes that a caller names, with their widths where the workload has such."""
    if widths and len(widths) != len(sizes):
        raise PlanError(f"widths must be as many as sizes, got {len(widths)} widths and {len(sizes)} sizes")
    named: Sequence[int | None] = widths or [None] * len(sizes)
    return tuple(Member(float(s), w) for s, w in zip(sizes, named, strict=True))


def _width_of(member: object, size: float) -> int | None:
    """The width whose size is nearest; sizes grow with width."""
    best: tuple[float, int] | None = None
    for width in (8 * i for i in range(1, 1025)):
        found = member(width)  # type: ignore[operator]
        if found is None:
            continue
        away = abs(math.log(found.size / size))
        if best is None or away < best[0]:
            best = (away, width)
        elif found.size > 4 * size:
            break
    return None if best is None else best[1]


def _default_widths(cls: object, largest: int) -> list[int]:
    """The workload's usual widths and, towards a larger target, steps of a factor of about 1.4 up to half of it."""
    usual = [int(w) for w in getattr(cls, "default_widths", ())]
    out = [w for w in usual if w < largest]
    start = usual[0] if usual else 16
    width = float(start)
    while width <= largest / 2:
        rounded = max(8, 8 * round(width / 8))
        out.append(rounded)
        width *= math.sqrt(2.0)
    return sorted({w for w in out if w <= max(largest / 2, start) and w < largest})


def target_size(target: float | str, workload: str) -> tuple[float, int | None]:
    """Size and, where that was said, width."""
    if isinstance(target, str) and (found := re.fullmatch(r"\s*width\s*=\s*(\d+)\s*", target)):
        if not built_in(workload):
            raise PlanError(
                f"target {target!r} names a width, which only a built-in workload has: give parameters"
            )
        from metaopt_hpo.workloads.registry import workload_class

        return float(workload_class(workload)(width=int(found[1])).size), int(found[1])
    return number(target, "target"), None
