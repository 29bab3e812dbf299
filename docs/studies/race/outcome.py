"""What the race says: target runs, pilots counted, until within a tolerance of the best of all methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from metaopt_hpo.comparison.methods import method
from metaopt_hpo.comparison.results import TABLE_FILE
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.plan import store
from metaopt_hpo.scaling.sameness import same
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable
from studies.section import Section

KEPT = Path(__file__).parent / "race.parquet"

PLAN = "plan"
"""What the plan's runs are called beside the other methods'."""

WITHIN = 0.005

NEAR = 0.1
"""Loss over the best up to which a parabola in ln lr is taken to hold."""

LEAST = 5
"""Different rates that a parabola with its noise needs."""


class RaceError(MetaOptError):
    """No seed of the race has finished."""


Excess = Callable[[float], float]
"""ln loss at an lr over that at the best one."""


@dataclass(frozen=True)
class Seed:
    """One seed: every method's runs in order, each with the compute spent until its end, in target runs."""

    runs: Mapping[str, Sequence[tuple[float, TrialRecord]]]

    def targets(self, name: str) -> list[tuple[float, TrialRecord]]:
        """A method's complete runs of the target."""
        size = max(r.size for runs in self.runs.values() for _, r in runs)
        return [
            (spent, r)
            for spent, r in self.runs[name]
            if r.state == "complete" and math.isfinite(r.loss) and r.size == size
        ]

    @property
    def best(self) -> float:
        """Lowest loss of all methods."""
        return min(r.loss for name in self.runs for _, r in self.targets(name))

    def reached(self, name: str) -> float:
        """Compute until the best loss so far is within `WITHIN` of the best of all; inf where it never is."""
        goal = self.best * (1 + WITHIN)
        return next((spent for spent, r in self.targets(name) if r.loss <= goal), math.inf)

    def after(self, name: str, compute: float) -> float:
        """Loss over the best of all once so much compute is spent; inf where no run of the target has ended by then."""
        ended = [r.loss for spent, r in self.targets(name) if spent <= compute]
        return min(ended) / self.best - 1 if ended else math.inf

    def settled(self, name: str, excess: Excess) -> tuple[float, float]:
        """Compute until the best run so far has an lr that costs at most `WITHIN`, and what the last such lr costs."""
        when, over, best = math.inf, math.nan, math.inf
        for spent, r in self.targets(name):
            if r.loss < best:
                best, over = r.loss, excess(r.lr)
                when = min(when, spent) if over <= WITHIN else math.inf
        return when, over


def curve(seeds: Sequence[Seed]) -> Excess | None:
    """Excess of an lr over the best one: a parabola in ln lr through all runs, each seed at a level of its own.

    Of many runs the luckiest is the best; a curve is not so moved by luck. None with too few rates, or where they
    show no minimum.
    """
    rows, z = [], []
    for i, seed in enumerate(seeds):
        for name in seed.runs:
            for _, r in seed.targets(name):
                if r.loss <= seed.best * (1 + NEAR):
                    x = math.log(r.lr)
                    rows.append([x * x, x, *(float(i == j) for j in range(len(seeds)))])
                    z.append(math.log(r.loss))
    if len({row[1] for row in rows}) < LEAST:
        return None
    a, b, *_ = np.linalg.lstsq(np.array(rows), np.array(z), rcond=None)[0]
    if a <= 0:
        return None
    return lambda lr: float(a * (math.log(lr) + b / (2 * a)) ** 2)


def kept_seeds(file: Path, cell: tuple[float, float]) -> dict[str, list[TrialRecord]]:
    """Runs by seed of a kept race whose target has this size and these tokens; none where it had another."""
    seeds: dict[str, list[TrialRecord]] = {}
    for r in TrialTable.read(file).records() if file.exists() else ():
        seeds.setdefault(r.study, []).append(r)

    def is_target(r: TrialRecord) -> bool:
        return r.method != PLAN and same(r.size, cell[0]) and same(r.target_tokens or r.tokens, cell[1])

    return {name: runs for name, runs in seeds.items() if any(map(is_target, runs))}


def gather(out: Path, kept: Path, cell: tuple[float, float]) -> TrialTable:
    """All runs of the seeds that have finished, each method's in order; the plan's pilots and target are `PLAN`'s.

    What the folder does not have of a seed is taken from the `kept` file, where its target is `cell`.

    Raises:
        RaceError: no seed has finished.
    """
    seeds = kept_seeds(kept, cell)
    for folder in sorted(out.glob("seed*")):
        before = seeds.get(folder.name, [])
        own = [r for r in before if r.method == PLAN]
        others = [r for r in before if r.method != PLAN]
        if (folder / "plan").exists():
            held = store.read(folder / "plan")
            if held.target:
                own = [replace(r, method=PLAN, trial=r.study) for r in (*held.pilots, held.target)]
                own = [_named(r, folder.name) for r in own]
        if (folder / "others" / TABLE_FILE).exists():
            others = [
                _named(r, folder.name) for r in TrialTable.read(folder / "others" / TABLE_FILE).records()
            ]
        if own and others:
            seeds[folder.name] = [*own, *others]
    if not seeds:
        raise RaceError(f"no seed of the race in {out} has finished; run: python -m studies.race --out {out}")
    return TrialTable.from_records([r for name in sorted(seeds) for r in seeds[name]], warn=False)


def _named(record: TrialRecord, seed: str) -> TrialRecord:
    return replace(record, study=seed, trial=f"{record.method}/{record.trial}", curve=None)


def seeds_of(records: Sequence[TrialRecord]) -> list[Seed]:
    """The seeds of a table that `gather` made; a target run is the unit of compute."""
    by: dict[str, dict[str, list[TrialRecord]]] = {}
    for r in records:
        by.setdefault(r.study, {}).setdefault(r.method, []).append(r)
    unit = max(r.cost for r in records)
    return [Seed({m: list(_spending(runs, unit)) for m, runs in methods.items()}) for methods in by.values()]


def _spending(runs: Sequence[TrialRecord], unit: float) -> Iterator[tuple[float, TrialRecord]]:
    spent = 0.0
    for r in runs:
        spent += r.cost / unit
        yield spent, r


def table(seeds: Sequence[Seed]) -> Section:
    """The race's table."""
    excess = curve(seeds)
    section = Section(
        f"Target runs until within {WITHIN:.1%} of the best, {len(seeds)} seeds",
        (
            "method",
            "of all runs: in",
            "median",
            "each",
            "by the curve: median",
            "each",
            "its last lr costs",
            "loss over the best with the plan's compute",
            "with all of its own",
        ),
        note="Compute of pilots is counted in target runs; – where a seed never came so near. By the curve: the best "
        "run so far has an lr that a parabola through all runs of all seeds puts so near: luck hardly moves it.",
    )
    for name in seeds[0].runs:
        runs = [seed.reached(name) for seed in seeds]
        settled = [(math.nan, math.nan) if excess is None else seed.settled(name, excess) for seed in seeds]
        ends = [s.after(name, math.inf) for s in seeds]
        early = [s.after(name, s.targets(PLAN)[0][0]) for s in seeds]
        section.rows.append(
            (
                "Plan" if name == PLAN else method(name).title,
                f"{sum(map(math.isfinite, runs))} of {len(runs)}",
                *_words(runs),
                *_words([when for when, _ in settled]),
                f"{math.expm1(float(np.nanmean([over for _, over in settled]))):.2%}",
                f"{float(np.mean(early)):.2%}",
                f"{float(np.mean(ends)):.2%}",
            )
        )
    return section


def _words(values: Sequence[float]) -> tuple[str, str]:
    """Median and each."""
    middle = float(np.median(values))
    each = [f"{v:.2f}" if math.isfinite(v) else "–" for v in values]
    return (f"{middle:.2f}" if math.isfinite(middle) else "–"), ", ".join(each)
