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

from metaopt_hpo.comparison.statistics import Difference, mean_of_means, paired_difference
from metaopt_hpo.trials.table import TrialTable
from studies.one_run.cases import (
    CASES,
    MAIN,
    NEVER_COMMIT,
    ONE_RUN,
    RESNET18,
    RIVALS,
    SENSITIVITY,
    SENSITIVITY_CASE,
    STARTS,
    STREAM,
    TUNED,
    Case,
    Options,
)
from studies.one_run.results import Results, losses
from studies.one_run.transfer import Transfer, transfers

SENSIBLE = (1e-5, 3e-2)
"""Starts whose spread is reported apart from the full range."""

CLAIM = 5
"""Seeds a case needs to count in a mean over cases."""


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
    """Against the schedule and lr that are best on average over the other seeds: chosen without looking at this one."""
    luck: Difference | None
    """That choice against the best of all of the same seed: selection bias of the per-seed minimum."""
    against_constant: Difference | None
    """Against the best constant lr of the same seed, on the seeds that have all of them."""
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
    """Two-sided, of the mean over these cases, whose seeds were drawn; cases with one seed are left out."""
    p_cases: float
    """Wilcoxon's signed-rank test over cases (two-sided), the mean over seeds being one case's value: as if the cases
    had been drawn too; NaN below 5."""
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
class Watched:
    """The step size of one run from its first steps on."""

    case: Case
    start: float
    part: tuple[float, ...]
    """Parts of the run, ascending to 1."""
    step_size: tuple[float, ...]

    def at(self, part: float) -> float:
        """Step size after this part of the run, interpolated in logarithms."""
        return math.exp(float(np.interp(math.log(part), np.log(self.part), np.log(self.step_size))))


@dataclass(frozen=True)
class StudyOutcome:
    """Everything the report and the documents show."""

    runs: int
    flops: float
    cases: tuple[CaseOutcome, ...]
    mean_against_best: Difference | None
    """Mean over the cases with enough seeds (`CLAIM`)."""
    mean_against_chosen: Difference | None
    mean_luck: Difference | None
    counted: int
    """Cases in those means."""
    rivals: tuple[RivalOutcome, ...]
    wins: int
    pairs: int
    starts: tuple[StartOutcome, ...]
    sensitivity: tuple[Variation, ...]
    transfers: tuple[Transfer, ...]
    stream: tuple[tuple[str, CaseOutcome], ...]
    """The stream, against the best constant lr: as recommended, and as the paper does it."""
    watched: tuple[Watched, ...]


def judge(table: TrialTable) -> StudyOutcome:
    """Judge what a table of the study holds."""
    results = Results(table)
    cases = tuple(o for case in (*MAIN, RESNET18) if (o := _case(results, case, TUNED)) is not None)
    streams = {"one run": None, "one run that never commits, as in the paper": NEVER_COMMIT}
    rivals = tuple(r for name in RIVALS if (r := _rival(results, name)) is not None)
    counted = [o for o in cases if len(o.seeds) >= CLAIM]
    gaps = [_gaps(results, o.case, tuple(o.schedule_loss)) for o in counted]
    return StudyOutcome(
        runs=len(table),
        flops=table.cost(),
        cases=cases,
        mean_against_best=_mean([g.best for g in gaps]),
        mean_against_chosen=_mean([g.chosen for g in gaps]),
        mean_luck=_mean([g.luck for g in gaps]),
        counted=len(counted),
        rivals=rivals,
        wins=sum(r.wins for r in rivals),
        pairs=sum(r.pairs for r in rivals),
        starts=tuple(s for case in CASES if (s := _starts(results, case)) is not None),
        sensitivity=tuple(_sensitivity(results)),
        transfers=tuple(transfers(results)),
        stream=tuple(
            (label, o)
            for label, changed in streams.items()
            if (o := _case(results, STREAM, ("constant",), changed)) is not None
        ),
        watched=tuple(
            Watched(case, start, tuple(t / r.target_tokens for t in r.curve.tokens), r.curve.step_size)
            for case in CASES
            for start, r in results.watched(case, 0)
            if r.curve is not None
        ),
    )


def _complete_seeds(
    results: Results, case: Case, schedules: Sequence[str], changed: Options | None
) -> tuple[int, ...]:
    return tuple(
        s
        for s in results.seeds()
        if results.own(case, s, changed) is not None
        and all(not math.isnan(results.run(case, name, s, lr)) for name in schedules for lr in case.grid)
    )


def _present(
    results: Results, case: Case, schedules: Sequence[str], changed: Options | None = None
) -> tuple[str, ...]:
    """The schedules that are complete on most seeds: one that has just been begun would throw the others' away."""
    complete = {name: len(_complete_seeds(results, case, (name,), changed)) for name in schedules}
    most = max(complete.values())
    return tuple(name for name in schedules if complete[name] == most > 0)


@dataclass(frozen=True)
class _Gaps:
    """Differences of ln loss on the seeds a case has in full."""

    seeds: tuple[int, ...]
    tuned: np.ndarray
    """Losses, (schedules × learning rates, seeds)."""
    own: np.ndarray
    """Losses of the single run; inf where it failed."""
    best: np.ndarray
    chosen: np.ndarray
    luck: np.ndarray


def _gaps(results: Results, case: Case, schedules: Sequence[str], changed: Options | None = None) -> _Gaps:
    seeds = _complete_seeds(results, case, schedules, changed)
    tuned = losses(results, case, schedules, seeds)
    records = [r for s in seeds if (r := results.own(case, s, changed)) is not None]
    own = np.array([r.loss if r.state == "complete" else math.inf for r in records])
    logs = np.log(tuned)
    least = logs.min(axis=0)
    others = (logs.sum(axis=1, keepdims=True) - logs) if len(seeds) > 1 else logs
    chosen = logs[others.argmin(axis=0), np.arange(len(seeds))]
    return _Gaps(seeds, tuned, own, np.log(own) - least, np.log(own) - chosen, chosen - least)


def _case(
    results: Results, case: Case, schedules: Sequence[str], changed: Options | None = None
) -> CaseOutcome | None:
    present = _present(results, case, schedules, changed)
    if not present:
        return None
    gaps = _gaps(results, case, present, changed)
    tuned = gaps.tuned
    means = np.log(tuned).mean(axis=1)
    count = len(case.grid)
    records = [r for s in gaps.seeds if (r := results.own(case, s, changed)) is not None]
    plateaus = [math.log(r.found_lr) for r in records if r.found_lr > 0]
    noise = np.log(tuned[int(np.argmin(means))])
    return CaseOutcome(
        case=case,
        seeds=gaps.seeds,
        loss=float(gaps.own.mean()),
        schedule_loss={
            n: float(tuned[i * count : (i + 1) * count].min(axis=0).mean()) for i, n in enumerate(present)
        },
        schedule_lr={
            n: case.grid[int(np.argmin(means[i * count : (i + 1) * count]))] for i, n in enumerate(present)
        },
        lr=math.exp(statistics.fmean(plateaus)) if plateaus else math.nan,
        against_best=_difference(gaps.best),
        against_chosen=_difference(gaps.chosen),
        luck=_difference(gaps.luck),
        against_constant=_against_constant(results, case, changed),
        runs=len(tuned),
        noise=float(noise.std(ddof=1)) if len(noise) > 1 else math.nan,
    )


def _against_constant(results: Results, case: Case, changed: Options | None) -> Difference | None:
    present = _present(results, case, ("constant",), changed)
    return _difference(_gaps(results, case, present, changed).best) if present else None


def _difference(gaps: np.ndarray) -> Difference | None:
    return paired_difference(gaps.tolist(), [0.0] * len(gaps)) if np.isfinite(gaps).all() else None


def _mean(gaps: Sequence[np.ndarray]) -> Difference | None:
    finite = all(np.isfinite(g).all() for g in gaps)
    return mean_of_means([g.tolist() for g in gaps]) if gaps and finite else None


def _rival(results: Results, name: str) -> RivalOutcome | None:
    wins = pairs = failed = 0
    groups = []
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
            groups.append(differences)
    if not pairs:
        return None
    means = [statistics.fmean(g) for g in groups]
    repeated = [g for g in groups if len(g) > 1]
    return RivalOutcome(
        name=name,
        wins=wins,
        pairs=pairs,
        difference=statistics.median(means) if means else math.nan,
        p=mean_of_means(repeated).p if repeated else math.nan,
        p_cases=float(stats.wilcoxon(means).pvalue) if len(means) >= 5 else math.nan,
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
