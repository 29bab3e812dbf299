"""What a program's run was: how it ended, in a trial's words, and its losses as a curve."""

from __future__ import annotations

import math

from metaopt_hpo.trials.diverged import EXPLODED, exploded
from metaopt_hpo.trials.record import Curve, TrialState, report_grid
from metaopt_hpo.workloads import program, reported

DIVERGED = "the loss is not finite"


def verdict(
    ended: program.Ended,
    found: reported.Reported | None,
    seen: float,
    planned: float,
    batch: float,
    timeout: float | None,
) -> tuple[TrialState, str]:
    """State and reason of a run."""
    if found and not math.isfinite(found.final):
        return "diverged", DIVERGED
    first = found.points[0][1] if found else math.nan
    if ended.stopped == DIVERGED or ended.not_finite:
        return "diverged", ended.said if ended.not_finite else DIVERGED
    if ended.stopped is not None:
        return "pruned", ended.stopped
    if ended.timed_out:
        return "failed", f"ran past its limit of {timeout:g} s"
    if ended.code != 0:
        if ended.out_of_memory:
            return "failed", f"out of memory at {batch:g} tokens a step: {ended.said or ended.how}"
        return "failed", f"{ended.how}: {ended.said}".rstrip(": ")
    if found and len(found.points) > 1 and exploded(found.final, first):
        return (
            "diverged",
            f"the loss ended at {found.final:.4g}, more than {EXPLODED:g} times its first value {first:.4g}",
        )
    if seen < planned - 0.02 * planned - batch and _next_report(found, seen) <= planned - batch:
        return "stopped", f"ended by itself after {seen:g} of {planned:g} tokens"
    return "complete", ""


def _next_report(found: reported.Reported | None, seen: float) -> float:
    """Tokens at which a program that had gone on would have said its loss again: as far on as its last two are apart.

    A loop that says its loss every 100 steps ends 512 of them with the one of step 500.
    """
    if found is None or len(found.points) < 2:
        return seen
    return seen + found.points[-1][0] - found.points[-2][0]


def curve_of(found: reported.Reported | None, planned: float, whole: bool) -> Curve | None:
    """The losses over tokens; where the program does not say how far it was, evenly spaced over a whole run."""
    if found is None:
        return None
    points = list(found.points)
    if math.isnan(points[0][0]):
        if not whole:
            return None
        points = [((i + 1) * planned / len(points), loss) for i, (_, loss) in enumerate(points)]
    points = [(t, v) for t, v in points if t > 0]
    if not points:
        return None
    return Curve(tuple(t for t, _ in points), tuple(v for _, v in points))


def on_grid(curve: Curve | None) -> Curve | None:
    """At most the grid's points of a curve."""
    if curve is None:
        return None
    keep: dict[float, tuple[float, float]] = {}
    grid = report_grid(max(1.0, curve.tokens[-1]), reports=80)
    at = 0
    for tokens, loss in zip(curve.tokens, curve.loss, strict=True):
        while at < len(grid) and grid[at] < tokens:
            at += 1
        keep[at] = (tokens, loss)
    if not keep:
        return None
    return Curve(tuple(t for t, _ in keep.values()), tuple(v for _, v in keep.values()))
