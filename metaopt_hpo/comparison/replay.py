"""Replay: search methods race on a table of real runs, thousands of trials in seconds, compared by what they spend.

`comparison.race` says how cost is counted and when a method has arrived. What ASHA and Hyperband see of a run before
its end is its curve, or where the table has none the cells of the same size at fewer tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from metaopt_hpo import markup
from metaopt_hpo.comparison.race import improvements, problem_of, racer_of
from metaopt_hpo.comparison.replayed import ReplayedObjective
from metaopt_hpo.comparison.table_objective import TableObjective
from metaopt_hpo.scaling.base.sources import BaseLike, base_of

METHODS = ("grid", "random", "tpe", "gp", "asha", "hyperband", "law")
THRESHOLDS = (0.001, 0.0025, 0.005)


@dataclass(frozen=True)
class ReplayResult:
    """What every method spent.

    Attributes:
        target: (size, tokens).
        trace: columns method, seed, cost (cumulative, target runs), excess (best so far, relative).
        grid_size: configurations in the target's grid: what a grid search costs in target runs.
    """

    target: tuple[float, float]
    trace: pd.DataFrame
    grid_size: int
    thresholds: tuple[float, ...]
    limit: float

    def costs(self) -> pd.DataFrame:
        """Cost to come within each threshold, one row per method and seed; infinite where the limit came first."""
        rows = []
        for (method, seed), g in self.trace.groupby(["method", "seed"], sort=False):
            row: dict[str, object] = {"method": method, "seed": seed}
            for t in self.thresholds:
                hit = g.loc[g["excess"] <= t, "cost"]
                row[f"{t:.2%}"] = float(hit.iloc[0]) if len(hit) else math.inf
            rows.append(row)
        return pd.DataFrame(rows)

    def summary(self) -> pd.DataFrame:
        """Median, mean and 90th percentile over seeds of the cost to each threshold (target runs).

        Runs that never came within count as the limit in the mean.
        """
        c = self.costs()
        out = []
        for method, g in c.groupby("method", sort=False):
            for t in self.thresholds:
                v = g[f"{t:.2%}"].to_numpy(dtype=float)
                capped = np.minimum(v, self.limit)
                out.append(
                    {
                        "method": method,
                        "within": f"{t:.2%}",
                        "median": float(np.median(capped)),
                        "mean": float(capped.mean()),
                        "p90": float(np.quantile(capped, 0.9)),
                        "reached": float(np.isfinite(v).mean()),
                    }
                )
        return pd.DataFrame(out)

    def _repr_html_(self) -> str:
        rows = [
            (
                r["method"],
                r["within"],
                *(f"{r[k]:.3g}" for k in ("median", "mean", "p90")),
                f"{r['reached']:.0%}",
            )
            for r in self.summary().to_dict("records")
        ]
        head = ("method", "within", "median", "mean", "90th percentile", "seeds that reached it")
        note = f"In target runs, pilots included; the whole grid is {self.grid_size} runs."
        return markup.table(head, rows, caption="Cost to come near the best run", note=note)


def replay(
    objective: TableObjective,
    target: tuple[float, float],
    *,
    pilots: Sequence[tuple[float, float]] | None = None,
    methods: Sequence[str] = METHODS,
    seeds: int = 30,
    thresholds: tuple[float, ...] = THRESHOLDS,
    limit: float = 150.0,
    base: BaseLike | Sequence[BaseLike] | None = None,
) -> ReplayResult:
    """Run every method from every seed until it is within the tightest threshold or has spent the limit.

    Args:
        objective: the table.
        target: (size, tokens) of the run whose lr and batch are searched.
        pilots: cells that the law-guided search may run; default all of smaller size and no more tokens.
        methods: of `METHODS`, or any that an installed engine races (`Racer.race_methods`).
        seeds: repetitions.
        thresholds: relative excess loss, ascending.
        limit: target-run equivalents after which a method has failed.
        base: runs of like models from which the laws of law-guided methods borrow strength, as in `fit`.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds!r}")
    if not methods:
        raise ValueError("methods must name at least one search method, got none")
    if not limit > 0:
        raise ValueError(f"limit must be a positive number of target runs, got {limit!r}")
    objective.grid(*target)  # a cell of the table, or an error that names those there are
    known = objective if isinstance(objective, ReplayedObjective) else _replayed(objective)
    problem = problem_of(objective.name, known, target)
    if pilots is not None:
        problem = replace(problem, pilots=tuple(pilots))
    known_before = None if base is None else base_of(base)
    rows: list[tuple[str, int, float, float]] = []
    for name in methods:
        racer, method = racer_of(name)
        for seed in range(seeds):
            task = problem.race(seed, limit, pilots=method.kind == "law", base=known_before)
            found = improvements(racer.race(method, task), problem, limit=limit, enough=thresholds[0])
            rows += [(name, seed, i.cost, i.excess) for i in found if math.isfinite(i.excess)]
    trace = pd.DataFrame(rows, columns=["method", "seed", "cost", "excess"])
    return ReplayResult(problem.target, trace, len(problem.truth.loss), tuple(thresholds), limit)


def _replayed(objective: TableObjective) -> ReplayedObjective:
    return ReplayedObjective(objective.table, name=objective.name)
