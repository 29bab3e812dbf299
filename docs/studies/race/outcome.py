"""What the race says: target runs, pilots counted, until within a tolerance of the best of all methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metaopt_hpo.comparison.methods import method
from metaopt_hpo.comparison.results import TABLE_FILE
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.plan import store
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable
from studies.section import Section

WITHIN = 0.005


class RaceError(MetaOptError):
    """No seed of the race has finished."""


def trajectories(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Of one seed, by method: (compute so far in target runs, best loss so far) after each run."""
    held = store.read(folder / "plan")
    unit = held.plan.target_cost.flops
    out = {"plan": _trajectory([*held.pilots, *([held.target] if held.target else [])], unit, store.TARGET)}
    for r in TrialTable.read(folder / "others" / TABLE_FILE).records():
        out.setdefault(r.method, [])
    rows = TrialTable.read(folder / "others" / TABLE_FILE).records()
    for name in [n for n in out if n != "plan"]:
        out[name] = _trajectory([r for r in rows if r.method == name], unit)
    return out


def _trajectory(records: Sequence[TrialRecord], unit: float, counts: str = "") -> list[tuple[float, float]]:
    spent, best, out = 0.0, math.inf, []
    for r in records:
        spent += r.cost / unit
        if r.state == "complete" and math.isfinite(r.loss) and (not counts or r.method == counts):
            best = min(best, r.loss)
        out.append((spent, best))
    return out


def reached(trajectory: Sequence[tuple[float, float]], goal: float) -> float:
    """Compute until the best loss is at the goal; inf where it never is."""
    return next((spent for spent, best in trajectory if best <= goal), math.inf)


def table(out: Path) -> Section:
    """The race's table.

    Raises:
        RaceError: no seed has finished.
    """
    done = [f for f in sorted(out.glob("seed*")) if (f / "others" / TABLE_FILE).exists()]
    if not done:
        raise RaceError(f"no seed of the race in {out} has finished; run: python -m studies.race --out {out}")
    seeds = [trajectories(f) for f in done]
    section = Section(
        f"Target runs until within {WITHIN:.1%} of the best of all, {len(done)} seeds",
        ("method", "reached in", "median", "each", "loss with all its compute, over the best"),
        note="Compute of pilots is counted in target runs; – where a seed never came so near.",
    )
    for name in seeds[0]:
        goals = [min(t[-1][1] for t in seed.values()) for seed in seeds]
        runs = [reached(seed[name], goal * (1 + WITHIN)) for seed, goal in zip(seeds, goals, strict=True)]
        over = [seed[name][-1][1] / goal - 1 for seed, goal in zip(seeds, goals, strict=True)]
        middle = float(np.median(runs))
        section.rows.append(
            (
                "Plan" if name == "plan" else method(name).title,
                f"{sum(map(math.isfinite, runs))} of {len(runs)}",
                f"{middle:.2f}" if math.isfinite(middle) else "–",
                ", ".join(f"{r:.2f}" if math.isfinite(r) else "–" for r in runs),
                f"{float(np.mean(over)):.2%}",
            )
        )
    return section
