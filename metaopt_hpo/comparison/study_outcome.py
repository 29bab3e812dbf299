"""What a study showed: one run against tuned schedules, against every rival, from every start. Reads only the table.

Differences are of ln(held-out loss), paired by seed, so that +0.01 is a loss 1 % higher; intervals are Student's at
90 %. A case enters a comparison with the seeds that are complete in it: a table that is not finished yields what it
holds, and says how many seeds that is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from metaopt_hpo.comparison.statistics import Difference, paired_difference
from metaopt_hpo.comparison.study import (
    CASES,
    MAIN,
    ONE_RUN,
    RIVALS,
    SENSITIVITY,
    SENSITIVITY_CASE,
    STARTS,
    STREAM,
    TEXT,
    Case,
    Cell,
    single,
)
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable

TUNED = ("wsd", "cosine")
SENSIBLE = (1e-5, 3e-2)
"""Starts whose spread is reported apart from the full range."""


@dataclass(frozen=True)
class CaseOutcome:
    """One run against tuned schedules on one case."""

    case: Case
    seeds: tuple[int, ...]
    loss: float
    """Mean held-out loss of the single run."""
    schedule_loss: dict[str, float]
    """Schedule → mean over seeds of its best of the grid, seed by seed."""
    schedule_lr: dict[str, float]
    """Schedule → the grid's lr of lowest mean loss."""
    lr: float
    """Geometric mean of the step size the run committed to."""
    against_best: Difference | None
    """Against the best of all tuned runs of the same seed: what a grid of 14 runs would have kept."""
    against_chosen: Difference | None
    """Against the schedule and lr that are best on average over seeds: chosen without looking at the seed."""
    runs: int
    """Tuned runs a seed."""
    noise: float
    """Standard deviation over seeds of ln loss at the chosen schedule and lr."""


@dataclass(frozen=True)
class RivalOutcome:
    """One run of MetaOptimize against one run of a rival at its own defaults."""

    name: str
    wins: int
    pairs: int
    difference: float
    """Median over cases of the mean ln(our loss / its loss)."""
    p: float
    """Wilcoxon's signed-rank test over cases (two-sided), the mean over seeds being one case's value; NaN below 5."""
    failed: int
    """Of its runs, those that diverged or failed; a pair lost by a failure counts as ours."""


@dataclass(frozen=True)
class StartOutcome:
    """One case from twelve starts."""

    case: Case
    seeds: tuple[int, ...]
    losses: tuple[float, ...]
    """Mean loss from each of `STARTS`."""
    spread: float
    """Largest over smallest of those from 1e-5 to 3e-2, minus 1."""
    full_spread: float
    """The same from 1e-6 to 1e-1."""


@dataclass(frozen=True)
class Variation:
    """One option changed: its effect on ln loss, against the defaults."""

    label: str
    difference: Difference


@dataclass(frozen=True)
class Transfer:
    """A law through MetaOptimize's own step sizes at smaller widths, asked for the next one."""

    case: Case
    sizes: int
    predicted: float
    """Committed step size that a line in ln size through the smaller widths gives here."""
    found: float
    """The tuned WSD schedule's best lr here: vertex of a parabola in ln lr through the grid's best three."""
    excess: float
    """Loss of WSD at the predicted lr, interpolated in ln lr, over the grid's best, minus 1."""

    @property
    def ratio(self) -> float:
        """Predicted over found."""
        return self.predicted / self.found


@dataclass(frozen=True)
class StudyOutcome:
    """Everything the report and the documents show."""

    runs: int
    flops: float
    cases: tuple[CaseOutcome, ...]
    mean_against_best: Difference | None
    """Mean over the cases that have every seed; paired by seed."""
    mean_against_chosen: Difference | None
    rivals: tuple[RivalOutcome, ...]
    wins: int
    pairs: int
    starts: tuple[StartOutcome, ...]
    sensitivity: tuple[Variation, ...]
    transfers: tuple[Transfer, ...]
    stream: CaseOutcome | None
    """The stream: against the best constant lr."""


class Results:
    """The table's runs, by case, strategy, lr, options and seed."""

    def __init__(self, table: TrialTable) -> None:
        self.records = {r.trial: r for r in table.records()}

    def run(self, case: Case, strategy: str, seed: int, lr: float | None = None, **options: object) -> float:
        """Held-out loss of a run; inf where it failed or diverged, NaN where it has not been run."""
        record = self.record(case, strategy, seed, lr, **options)
        if record is None:
            return math.nan
        return record.loss if record.state == "complete" and math.isfinite(record.loss) else math.inf

    def record(
        self, case: Case, strategy: str, seed: int, lr: float | None = None, **options: object
    ) -> TrialRecord | None:
        """The record of a run, or None."""
        cell = Cell(case=case, strategy=strategy, seed=seed, lr=lr, options=options)  # type: ignore[arg-type]
        return self.records.get(cell.key)

    def own(self, case: Case, seed: int) -> TrialRecord | None:
        """The single run of MetaOptimize as it comes, with what the workload recommends, or None."""
        (cell,) = single(case, seed, (ONE_RUN,))
        return self.records.get(cell.key)

    def seeds(self) -> tuple[int, ...]:
        """All seeds in the table."""
        return tuple(sorted({r.seed for r in self.records.values()}))


def judge(table: TrialTable) -> StudyOutcome:
    """Judge what a table of the study holds."""
    results = Results(table)
    cases = tuple(o for case in MAIN if (o := _case(results, case, TUNED)) is not None)
    stream = _case(results, STREAM, ("constant",), recommended=True)
    rivals = tuple(r for name in RIVALS if (r := _rival(results, name)) is not None)
    return StudyOutcome(
        runs=len(table),
        flops=table.cost(),
        cases=cases,
        mean_against_best=_mean(results, cases, chosen=False),
        mean_against_chosen=_mean(results, cases, chosen=True),
        rivals=rivals,
        wins=sum(r.wins for r in rivals),
        pairs=sum(r.pairs for r in rivals),
        starts=tuple(s for case in CASES if (s := _starts(results, case)) is not None),
        sensitivity=tuple(_sensitivity(results)),
        transfers=tuple(_transfers(results)),
        stream=stream,
    )


def _complete_seeds(results: Results, case: Case, schedules: Sequence[str]) -> tuple[int, ...]:
    return tuple(
        s
        for s in results.seeds()
        if results.own(case, s) is not None
        and all(not math.isnan(results.run(case, name, s, lr)) for name in schedules for lr in case.grid)
    )


def _losses(results: Results, case: Case, schedules: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
    """Losses of tuned runs, (schedules × learning rates, seeds)."""
    return np.array(
        [[results.run(case, name, s, lr) for s in seeds] for name in schedules for lr in case.grid]
    )


def _case(
    results: Results, case: Case, schedules: Sequence[str], *, recommended: bool = False
) -> CaseOutcome | None:
    present = [
        name
        for name in schedules
        if any(not math.isnan(results.run(case, name, s, case.grid[0])) for s in results.seeds())
    ]
    seeds = _complete_seeds(results, case, present)
    if not present or not seeds:
        return None
    tuned = _losses(results, case, present, seeds)
    records = [r for s in seeds if (r := results.own(case, s)) is not None]
    own = [r.loss if r.state == "complete" else math.inf for r in records]
    best = tuned.min(axis=0)
    means = np.log(tuned).mean(axis=1)
    chosen = tuned[int(np.argmin(means))]
    count = len(case.grid)
    plateaus = [math.log(r.plateau_lr) for r in records if r.plateau_lr > 0]
    return CaseOutcome(
        case=case,
        seeds=seeds,
        loss=statistics.fmean(own),
        schedule_loss={
            n: float(tuned[i * count : (i + 1) * count].min(axis=0).mean()) for i, n in enumerate(present)
        },
        schedule_lr={
            n: case.grid[int(np.argmin(means[i * count : (i + 1) * count]))] for i, n in enumerate(present)
        },
        lr=math.exp(statistics.fmean(plateaus)) if plateaus else math.nan,
        against_best=_log_difference(own, best),
        against_chosen=_log_difference(own, chosen),
        runs=len(tuned),
        noise=float(np.log(chosen).std(ddof=1)) if len(seeds) > 1 else math.nan,
    )


def _log_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference | None:
    a, b = np.log(np.asarray(ours, dtype=float)), np.log(np.asarray(theirs, dtype=float))
    return paired_difference(a.tolist(), b.tolist()) if np.isfinite(a - b).all() else None


def _mean(results: Results, cases: Sequence[CaseOutcome], *, chosen: bool) -> Difference | None:
    """Mean over cases for each seed that all of them have, then over seeds."""
    if not cases:
        return None
    # cases with few seeds would throw the others' away
    most = max(len(c.seeds) for c in cases)
    whole = [c for c in cases if len(c.seeds) == most]
    seeds = sorted(set.intersection(*(set(c.seeds) for c in whole)))
    if not seeds:
        return None
    rows = []
    for outcome in whole:
        present = tuple(outcome.schedule_loss)
        tuned = _losses(results, outcome.case, present, seeds)
        theirs = tuned[int(np.argmin(np.log(tuned).mean(axis=1)))] if chosen else tuned.min(axis=0)
        ours = [r.loss if (r := results.own(outcome.case, s)) is not None else math.nan for s in seeds]
        rows.append(np.log(ours) - np.log(theirs))
    per_seed = np.array(rows).mean(axis=0)
    return paired_difference(per_seed.tolist(), [0.0] * len(seeds)) if np.isfinite(per_seed).all() else None


def _rival(results: Results, name: str) -> RivalOutcome | None:
    wins = pairs = failed = 0
    means = []
    for case in MAIN:
        differences = []
        for seed in results.seeds():
            theirs = results.run(case, name, seed)
            own = results.own(case, seed)
            if math.isnan(theirs) or own is None:
                continue
            ours = own.loss if own.state == "complete" else math.inf
            pairs += 1
            wins += ours < theirs
            failed += math.isinf(theirs)
            if math.isfinite(theirs) and math.isfinite(ours):
                differences.append(math.log(ours / theirs))
        if differences:
            means.append(statistics.fmean(differences))
    if not pairs:
        return None
    return RivalOutcome(
        name=name,
        wins=wins,
        pairs=pairs,
        difference=statistics.median(means) if means else math.nan,
        p=float(stats.wilcoxon(means).pvalue) if len(means) >= 5 else math.nan,
        failed=failed,
    )


def _starts(results: Results, case: Case) -> StartOutcome | None:
    seeds = tuple(
        s for s in results.seeds() if all(not math.isnan(results.run(case, ONE_RUN, s, lr)) for lr in STARTS)
    )
    if not seeds:
        return None
    losses = [statistics.fmean(results.run(case, ONE_RUN, s, lr) for s in seeds) for lr in STARTS]
    low, high = SENSIBLE
    inner = [x for x, lr in zip(losses, STARTS, strict=True) if low * 0.99 <= lr <= high * 1.01]
    return StartOutcome(
        case, seeds, tuple(losses), max(inner) / min(inner) - 1, max(losses) / min(losses) - 1
    )


def _sensitivity(results: Results) -> list[Variation]:
    found = []
    for label, options in SENSITIVITY:
        pairs = []
        for seed in results.seeds():
            changed = results.run(SENSITIVITY_CASE, ONE_RUN, seed, None, **options)
            own = results.own(SENSITIVITY_CASE, seed)
            if own is not None and math.isfinite(changed):
                pairs.append((math.log(changed), math.log(own.loss)))
        if pairs:
            a, b = zip(*pairs, strict=True)
            found.append(Variation(label, paired_difference(a, b)))
    return found


def _transfers(results: Results) -> list[Transfer]:
    """For each width with at least two smaller ones: the line through theirs, and what it would have cost here."""
    known = []
    for case in TEXT:
        rates = [
            math.log(r.plateau_lr)
            for s in results.seeds()
            if (r := results.own(case, s)) is not None and r.plateau_lr > 0
        ]
        seeds = [
            s
            for s in results.seeds()
            if all(math.isfinite(results.run(case, "wsd", s, lr)) for lr in case.grid)
        ]
        if rates and seeds:
            size = next(
                r.size for s in seeds if (r := results.record(case, "wsd", s, case.grid[0])) is not None
            )
            curve = np.log(_losses(results, case, ("wsd",), seeds)).mean(axis=1)
            known.append((case, math.log(size), statistics.fmean(rates), curve))
    found = []
    for i in range(2, len(known)):
        case, size, _, curve = known[i]
        slope, start = np.polyfit([k[1] for k in known[:i]], [k[2] for k in known[:i]], 1)
        at = float(slope * size + start)
        grid = np.log(case.grid)
        vertex, least = _vertex(grid, curve)
        inside = float(np.clip(at, grid[0], grid[-1]))
        here = float(_parabola(grid, curve, inside))
        found.append(Transfer(case, i, math.exp(at), math.exp(vertex), math.expm1(max(0.0, here - least))))
    return found


def _around(x: np.ndarray, y: np.ndarray, at: float | None = None) -> slice:
    middle = int(np.argmin(y)) if at is None else int(np.argmin(np.abs(x - at)))
    middle = min(max(middle, 1), len(x) - 2)
    return slice(middle - 1, middle + 2)


def _vertex(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Place and height of the minimum of a parabola through the lowest point and its neighbours."""
    part = _around(x, y)
    a, b, c = np.polyfit(x[part], y[part], 2)
    if a <= 0:
        i = int(np.argmin(y))
        return float(x[i]), float(y[i])
    at = float(np.clip(-b / (2 * a), x[part][0], x[part][-1]))
    return at, float(a * at * at + b * at + c)


def _parabola(x: np.ndarray, y: np.ndarray, at: float) -> float:
    """Value at `at` of the parabola through the three nearest points."""
    part = _around(x, y, at)
    return float(np.polyval(np.polyfit(x[part], y[part], 2), at))
