"""Replay: search methods on a table of real runs, thousands of trials in seconds, compared by what they spend.

Cost is counted in target-run equivalents (6·N·D of a run over that of the target), pilots included. A method
succeeds when it has *run* a target configuration within a tolerance of the best in the table; it does not know
that it has. Lower fidelities (ASHA, Hyperband) are the table's cells of the same size at fewer tokens, and a
promoted run pays only for the tokens it adds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from metaopt_hpo import markup
from metaopt_hpo.comparison.law_search import LawSearchTask, law_search
from metaopt_hpo.comparison.searchers import Bounds, get_searcher
from metaopt_hpo.comparison.table_objective import TableObjective
from metaopt_hpo.scaling.fitting.grid import CellGrid
from metaopt_hpo.scaling.policy import Config

METHODS = ("grid", "random", "tpe", "gp", "asha", "hyperband", "law")
THRESHOLDS = (0.001, 0.0025, 0.005)
ETA = 3
"""Reduction factor of ASHA and Hyperband, their papers' default."""

Event = tuple[float, float]
"""(cost in FLOPs of this step, excess of a full target run or NaN)."""


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
) -> ReplayResult:
    """Run every method from every seed until it is within the tightest threshold or has spent the limit.

    Args:
        objective: the table.
        target: (size, tokens) of the run whose lr and batch are searched.
        pilots: cells that the law-guided search may run; default all of smaller size and no more tokens.
        methods: of `METHODS`, or the name of any installed searcher.
        seeds: repetitions.
        thresholds: relative excess loss, ascending.
        limit: target-run equivalents after which a method has failed.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds!r}")
    if not methods:
        raise ValueError("methods must name at least one search method, got none")
    if not limit > 0:
        raise ValueError(f"limit must be a positive number of target runs, got {limit!r}")
    grid = objective.grid(*target)
    if pilots is None:
        pilots = [c for c in objective.cells if c[0] < target[0] * 0.999 and c[1] <= target[1]]
    unit = 6.0 * target[0] * target[1]
    rows: list[tuple[str, int, float, float]] = []
    for method in methods:
        for seed in range(seeds):
            spent, best = 0.0, math.inf
            for cost, excess in _events(method, objective, target, grid, pilots, seed):
                spent += cost / unit
                if excess < best:
                    best = excess
                    rows.append((method, seed, spent, best))
                if best <= thresholds[0] or spent >= limit:
                    break
    trace = pd.DataFrame(rows, columns=["method", "seed", "cost", "excess"])
    return ReplayResult(target, trace, len(grid.loss), tuple(thresholds), limit)


def _events(
    method: str,
    objective: TableObjective,
    target: tuple[float, float],
    grid: CellGrid,
    pilots: Sequence[tuple[float, float]],
    seed: int,
) -> Iterator[Event]:
    if method == "law":
        return _law(objective, target, grid, pilots, seed)
    if method == "grid":
        return _grid(target, grid, seed)
    if method in ("asha", "hyperband"):
        return (_asha if method == "asha" else _hyperband)(objective, target, grid, seed)
    return _searcher(method, target, grid, seed)


def bounds(grid: CellGrid) -> dict[str, tuple[float, float]]:
    """The box around a cell's runs."""
    low, high = np.exp(grid.points.min(axis=0)), np.exp(grid.points.max(axis=0))
    return {"lr": (float(low[0]), float(high[0])), "batch": (float(low[1]), float(high[1]))}


def _grid(target: tuple[float, float], grid: CellGrid, seed: int) -> Iterator[Event]:
    """The measured configurations in random order: a grid is done when its last point is."""
    unit = 6.0 * target[0] * target[1]
    for i in np.random.default_rng(seed).permutation(len(grid.loss)):
        yield unit, float(grid.loss[i]) / grid.best - 1.0


def _searcher(name: str, target: tuple[float, float], grid: CellGrid, seed: int) -> Iterator[Event]:
    unit = 6.0 * target[0] * target[1]
    box: Bounds = bounds(grid)
    searcher = get_searcher(name)(box, seed)
    while True:
        asked = searcher.ask()
        loss = grid.at(*grid.clip(*asked))
        searcher.tell(asked, loss)
        yield unit, loss / grid.best - 1.0


def _law(
    objective: TableObjective,
    target: tuple[float, float],
    grid: CellGrid,
    pilots: Sequence[tuple[float, float]],
    seed: int,
) -> Iterator[Event]:
    boxes = [bounds(objective.grid(*c)) for c in (*pilots, target)]
    wide = {k: (min(b[k][0] for b in boxes), max(b[k][1] for b in boxes)) for k in ("lr", "batch")}
    task = LawSearchTask(target, tuple(pilots), wide["lr"], wide["batch"], seed)
    search = law_search(task)
    config = next(search)
    while True:
        cell = objective.grid(config.size, config.tokens)
        lr, batch = cell.clip(config.lr, config.batch)
        loss = cell.at(lr, batch)
        ran = Config(config.size, config.tokens, batch, lr)
        yield ran.cost, (loss / grid.best - 1.0 if (ran.size, ran.tokens) == target else math.nan)
        config = search.send((ran, loss))


COVERED = 0.8
"""A cell is a fidelity when it knows this share of the target's configurations."""


def rungs(objective: TableObjective, target: tuple[float, float]) -> tuple[float, ...]:
    """Tokens of the fidelities, ascending, each at least twice the one before, the target's last."""
    points = np.exp(objective.grid(*target).points)
    out: list[float] = []
    for t in reversed(objective.fidelities(*target)):
        if out and t > out[-1] / 2.0:
            continue
        cell = objective.grid(target[0], t)
        known = np.mean([math.isfinite(cell.at(lr, batch)) for lr, batch in points])
        if not out or known >= COVERED:
            out.append(t)
    return tuple(reversed(out))


class _Rungs:
    """Losses of configurations at each rung; one that a lower cell does not know is promoted unseen."""

    def __init__(
        self, objective: TableObjective, target: tuple[float, float], grid: CellGrid, seed: int
    ) -> None:
        self.size, self.grid = target[0], grid
        self.tokens = rungs(objective, target)
        self.cells = [objective.grid(target[0], t) for t in self.tokens]
        self.rng = np.random.default_rng(seed)
        self.box = bounds(grid)

    def sample(self) -> tuple[float, float]:
        point = [math.exp(self.rng.uniform(*np.log(self.box[k]))) for k in ("lr", "batch")]
        return self.grid.clip(point[0], point[1])

    def run(self, point: tuple[float, float], rung: int) -> tuple[Event, float]:
        """(event, loss at the rung): pays the tokens since the rung below."""
        before = self.tokens[rung - 1] if rung else 0.0
        loss = self.cells[rung].at(*point)
        top = rung == len(self.tokens) - 1
        excess = loss / self.grid.best - 1.0 if top else math.nan
        return (6.0 * self.size * (self.tokens[rung] - before), excess), (
            -math.inf if math.isnan(loss) else loss
        )


def _asha(
    objective: TableObjective, target: tuple[float, float], grid: CellGrid, seed: int
) -> Iterator[Event]:
    """Li et al. 2020, one worker: promote what is in a rung's best third, else start a new configuration."""
    ladder = _Rungs(objective, target, grid, seed)
    top = len(ladder.tokens) - 1
    at: list[list[tuple[float, tuple[float, float]]]] = [[] for _ in ladder.tokens]
    promoted: list[set[tuple[float, float]]] = [set() for _ in ladder.tokens]
    while True:
        point, rung = ladder.sample(), 0
        for k in reversed(range(top)):
            ranked = sorted(at[k])[: len(at[k]) // ETA]
            waiting = [p for _, p in ranked if p not in promoted[k]]
            if waiting:
                point, rung = waiting[0], k + 1
                promoted[k].add(point)
                break
        event, loss = ladder.run(point, rung)
        at[rung].append((loss, point))
        yield event


def _hyperband(
    objective: TableObjective, target: tuple[float, float], grid: CellGrid, seed: int
) -> Iterator[Event]:
    """Li et al. 2018: successive halving in brackets that start at every rung in turn."""
    ladder = _Rungs(objective, target, grid, seed)
    count = len(ladder.tokens)
    while True:
        for start in range(count):
            s = count - 1 - start
            points = [ladder.sample() for _ in range(math.ceil(count / (s + 1) * ETA**s))]
            for rung in range(start, count):
                scored = []
                for p in points:
                    (cost, excess), loss = ladder.run(p, rung)
                    if rung == start and rung:
                        cost = 6.0 * ladder.size * ladder.tokens[rung]
                    scored.append((loss, p))
                    yield cost, excess
                points = [p for _, p in sorted(scored)[: max(len(scored) // ETA, 1)]]
