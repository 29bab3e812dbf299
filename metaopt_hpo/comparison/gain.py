"""The gain: FLOPs until a method has run a target model within a tolerance of the best, pilots included.

`python -m metaopt_hpo.comparison.gain --engine optuna` replays tables of real runs through an engine's own samplers,
pruners and schedulers. Every method searches the same box of learning rate and batch, the one the table covers. What
a run is charged is what it used: a pilot 6·N·D of its own size, a stopped run what it saw. Results go to a Parquet
file; what it holds is not run again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
import pandas as pd
import typer

from metaopt_hpo.comparison import benchmarks, live_table
from metaopt_hpo.comparison.engine import EngineError, get_engine
from metaopt_hpo.comparison.objective import Configuration, Objective
from metaopt_hpo.comparison.replayed import ReplayedObjective
from metaopt_hpo.comparison.statistics import ratio_of_medians
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling.design import Cell
from metaopt_hpo.scaling.grid import CellGrid
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable

Bounds = tuple[float, float]

THRESHOLDS = (0.001, 0.0025, 0.005)
"""Relative loss above the best."""

LIMIT = 40.0
"""Target runs after which a method has failed; it then counts as this many."""

BASELINE = "tpe"


@dataclass(frozen=True, kw_only=True)
class Race:
    """One search of lr and batch at a target, in which smaller models may be trained too.

    Attributes:
        objective: runs a configuration, reports its curve, and says what it cost.
        target: (size, tokens) whose best lr and batch are wanted.
        pilots: smaller cells that may be run.
        lr, batch: the box that every method searches.
        rungs: tokens at which a run of the target reports, ascending, the end excluded.
        budget: FLOPs after which nothing more is asked.
        seed: of the method.
    """

    objective: Objective
    target: Cell
    pilots: tuple[Cell, ...]
    lr: Bounds
    batch: Bounds
    rungs: tuple[float, ...]
    budget: float
    seed: int

    def configuration(self, cell: Cell, lr: float, batch: float) -> Configuration:
        """A run of one cell."""
        return Configuration(size=cell[0], tokens=cell[1], batch=batch, lr=lr, seed=self.seed)


class Racer(Protocol):
    """What an engine offers beside `search`: its methods in a race."""

    @property
    def race_methods(self) -> Sequence[str]:
        """Names of the methods; those that start with "law" are ours."""
        ...

    def race(self, method: str, race: Race) -> Iterator[TrialRecord]:
        """Records of the runs in the order they end; the reader stops reading when it has seen enough.

        An engine that cannot be stopped in between may run until `race.budget` is spent and return all records.
        """
        ...


@dataclass(frozen=True)
class Problem:
    """A target in a table.

    Attributes:
        name: what it is called in results.
        objectives: one for each training seed; a method's n-th repetition meets the n-th, cyclically.
        target: (size, tokens).
        pilots: smaller cells.
        truth: loss over (lr, batch) at the target that counts, free of one seed's luck where there are several.
        unit: FLOPs of one run of the target.
    """

    name: str
    objectives: tuple[ReplayedObjective, ...]
    target: Cell
    pilots: tuple[Cell, ...]
    truth: CellGrid
    unit: float

    def race(self, seed: int, limit: float) -> Race:
        """The race a method runs."""
        objective = self.objectives[seed % len(self.objectives)]
        cells = [objective.grid(*c).points for c in (*self.pilots, self.target)]
        low = np.exp(np.min([p.min(axis=0) for p in cells], axis=0))
        high = np.exp(np.max([p.max(axis=0) for p in cells], axis=0))
        return Race(
            objective=objective,
            target=self.target,
            pilots=self.pilots,
            lr=(float(low[0]), float(high[0])),
            batch=(float(low[1]), float(high[1])),
            rungs=objective.rungs(*self.target),
            budget=limit * self.unit,
            seed=seed,
        )

    def excess(self, record: TrialRecord) -> float:
        """Relative loss above the best of a finished run of the target; NaN of any other run."""
        done = record.state == "complete" and (record.size, record.target_tokens) == self.target
        return self.truth.excess(record.lr, record.batch) if done else math.nan


def table_problem(name: str, table: TrialTable, target: Cell) -> Problem:
    """A target of a published table; pilots are all cells of smaller size and no more tokens."""
    objective = ReplayedObjective(table, name=name)
    pilots = tuple(c for c in objective.cells if c[0] < target[0] * 0.999 and c[1] <= target[1] * 1.001)
    unit = 6.0 * target[0] * target[1]
    return Problem(name, (objective,), target, pilots, objective.grid(*target), unit)


def problems(data: Path | None, live: Path | None) -> list[Problem]:
    """Targets of the tables at hand: the largest models of each published table, and live `text-lm`."""
    out: list[Problem] = []
    if data is not None:
        table = benchmarks.steplaw(data)
        size = float(table.frame["size"].max())
        for tokens in (4e10, 5e10, 1e11):
            out.append(_near(f"Step Law 429 M × {tokens / 1e9:.0f} B", table, size, tokens))
        table = benchmarks.openeurollm(data)
        size = float(table.frame["size"].max())
        for tokens in (5e10, 1.2e11, 3e11):
            out.append(_near(f"OpenEuroLLM 589 M × {tokens / 1e9:.0f} B", table, size, tokens))
        for name, widths in benchmarks.mup_widths(data).items():
            if name == "std no scheduler":
                sizes = sorted(widths.frame["size"].unique())
                out.append(table_problem(f"muP table, {name}", widths, (float(sizes[-1]), 5e7)))
    if live is not None and live.exists():
        out.append(live_table.problem(live))
    return out


def _near(name: str, table: TrialTable, size: float, tokens: float) -> Problem:
    cells = ReplayedObjective(table, name=name).cells
    return table_problem(name, table, min(cells, key=lambda c: abs(c[0] / size - 1) + abs(c[1] / tokens - 1)))


def run(
    racer: Racer, method: str, problem: Problem, seed: int, limit: float = LIMIT
) -> list[dict[str, float]]:
    """One search: cost (target runs so far) and excess at every improvement, and at the end."""
    spent, best, runs, pilots = 0.0, math.inf, 0, 0.0
    rows: list[dict[str, float]] = []
    for record in racer.race(method, problem.race(seed, limit)):
        spent += record.cost / problem.unit
        runs += 1
        excess = problem.excess(record)
        if math.isnan(excess) and record.size != problem.target[0]:
            pilots += record.cost / problem.unit
        if excess < best:
            best = excess
            rows.append({"cost": spent, "excess": best, "runs": runs, "pilots": pilots})
        if best <= THRESHOLDS[0] or spent >= limit:
            break
    return rows or [{"cost": spent, "excess": math.inf, "runs": runs, "pilots": pilots}]


KEYS = ["problem", "engine", "method", "seed"]


def race_all(
    engine: str, found: Sequence[Problem], methods: Sequence[str], seeds: int, out: Path, limit: float = LIMIT
) -> pd.DataFrame:
    """Run what `out` does not hold yet, saving after each search, and return all rows of the engine."""
    racer = get_engine(engine)
    offered = list(getattr(racer, "race_methods", ()))
    unknown = [m for m in methods if m not in offered]
    if unknown or not offered:
        raise EngineError(
            f"engine {engine!r} races {', '.join(offered) or 'nothing'}; not {', '.join(unknown)}"
        )
    frame = pd.read_parquet(out) if out.exists() else pd.DataFrame(columns=[*KEYS, "cost", "excess"])
    done = set(map(tuple, frame[KEYS].drop_duplicates().to_numpy().tolist()))
    for problem in found:
        for seed in range(seeds):
            for method in methods or offered:
                key = (problem.name, engine, method, seed)
                if key in done:
                    continue
                rows = run(racer, method, problem, seed, limit)  # type: ignore[arg-type]
                new = pd.DataFrame([dict(zip(KEYS, key, strict=True)) | r for r in rows])
                frame = new if frame.empty else pd.concat([frame, new], ignore_index=True)
                out.parent.mkdir(parents=True, exist_ok=True)
                temporary = out.with_suffix(".tmp")
                frame.to_parquet(temporary, index=False)
                os.replace(temporary, out)
    return frame[frame["engine"] == engine]


def costs(frame: pd.DataFrame, within: float, limit: float = LIMIT) -> pd.DataFrame:
    """Cost of each search to come within a relative excess, `limit` where it never did; columns by method."""
    hit = frame[frame["excess"] <= within].groupby(KEYS)["cost"].min()
    every = frame.groupby(KEYS)["cost"].max()
    filled = hit.reindex(every.index).clip(upper=limit).fillna(limit)
    return filled.reset_index().pivot(index=["problem", "seed"], columns="method", values="cost")


def summary(frame: pd.DataFrame, limit: float = LIMIT, baseline: str = BASELINE) -> pd.DataFrame:
    """Medians, and ratios to the baseline with 90 % bootstrap intervals over seeds, by problem and tolerance."""
    out = []
    for within in THRESHOLDS:
        table = costs(frame, within, limit)
        for problem, g in table.groupby(level="problem", sort=False):
            for method in table.columns:
                v = g[method].dropna().to_numpy(dtype=float)
                if not v.size:
                    continue
                row = {"problem": problem, "within": within, "method": method, "seeds": v.size}
                row |= {"median": float(np.median(v)), "mean": float(v.mean())}
                row["reached"] = float((v < limit).mean())
                base = g[baseline].dropna().to_numpy(dtype=float) if baseline in g else np.empty(0)
                names = ("ratio", "low", "high")
                row |= dict(
                    zip(
                        names,
                        ratio_of_medians(base.tolist(), v.tolist()) if base.size else (math.nan,) * 3,
                        strict=True,
                    )
                )
                out.append(row)
    return pd.DataFrame(out)


def markdown(found: pd.DataFrame, within: float = 0.0025) -> str:
    """One table: a row a problem, a column a method; "cost, × cheaper than the baseline (interval)"."""
    rows = found[found["within"] == within]
    methods = list(dict.fromkeys(rows["method"]))
    lines = ["| target | " + " | ".join(methods) + " |", "|---" * (1 + len(methods)) + "|"]
    for problem, g in rows.groupby("problem", sort=False):
        cells = []
        for m in methods:
            r = g[g["method"] == m]
            if r.empty:
                cells.append("–")
                continue
            r = r.iloc[0]
            ratio = f" ({r['ratio']:.1f}×, {r['low']:.1f} … {r['high']:.1f})" if m != BASELINE else ""
            cells.append(f"{r['median']:.1f}{ratio}")
        lines.append(f"| {problem} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(
    engine: Annotated[str, typer.Option(help="optuna or ray.")] = "optuna",
    data: Annotated[Path | None, typer.Option(help="Folder of published tables (docs/laws.md).")] = None,
    live: Annotated[Path, typer.Option(help="Table of live text-lm runs.")] = live_table.FILE,
    seeds: Annotated[int, typer.Option(help="Repetitions of each method.", min=1)] = 30,
    methods: Annotated[str, typer.Option(help="Comma-separated; all by default.")] = "",
    only: Annotated[str, typer.Option(help="Only problems whose name contains this.")] = "",
    out: Annotated[Path | None, typer.Option(help="Results; docs/results/gain_ENGINE.parquet.")] = None,
    report: Annotated[bool, typer.Option(help="Only print what the file holds.")] = False,
) -> None:
    """Race an engine's methods on every table at hand and print what each one spent."""
    out = out or Path(f"docs/results/gain_{engine}.parquet")
    try:
        if report:
            frame = pd.read_parquet(out)
        else:
            found = [p for p in problems(data, live) if only in p.name]
            if not found:
                raise MetaOptError("no table is at hand: give --data or --live")
            wanted = [m.strip() for m in methods.split(",") if m.strip()]
            frame = race_all(engine, found, wanted, seeds, out)
    except (MetaOptError, FileNotFoundError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    found_rows = summary(frame)
    for within in THRESHOLDS:
        typer.echo(f"\nTarget runs (median over seeds) to come within {within:.2%} of the best\n")
        typer.echo(markdown(found_rows, within))


if __name__ == "__main__":
    typer.run(main)
