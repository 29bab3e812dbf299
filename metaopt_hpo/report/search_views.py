"""What the report's figures and tables about the search show, as plain data: drawn by `figures`, tested here.

Every view is a pure function of the outcome, and says in `summary` what its figure shows.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from metaopt_hpo.comparison.methods import method
from metaopt_hpo.comparison.outcome import MATCH, Outcome, Trajectory
from metaopt_hpo.comparison.results import PILOT
from metaopt_hpo.comparison.statistics import Difference
from metaopt_hpo.report import words
from metaopt_hpo.trials.record import TrialRecord


@dataclass(frozen=True)
class MethodRow:
    """One line of the table of methods; numbers are those of the outcome, NaN where there is none."""

    name: str
    title: str
    best: tuple[float, ...]
    """Best loss of each seed; empty where the method is left out."""
    rates: tuple[float, ...]
    """Rate of the best trial of each seed."""
    trials: float
    """Mean trials a seed."""
    states: dict[str, int]
    """Trials that did not complete, by how they ended."""
    cost: float
    """Mean FLOPs a seed, pilots included."""
    match_cost: float
    match_saving: float
    """The reference's whole cost over `match_cost`."""
    difference: Difference | None
    is_reference: bool
    left_out: str = ""
    """Why the method has no result; empty where it has one."""

    @property
    def matched(self) -> bool:
        """Whether the reference's best was reached, on most seeds, at a known cost; the template asks."""
        return math.isfinite(self.match_cost)

    @property
    def decided(self) -> str:
        """What the interval of the difference says, in a word."""
        if self.difference is None or self.difference.pairs < 2:
            return ""
        if not self.difference.decided:
            return "undecided"
        return "lower loss" if self.difference.mean < 0 else "higher loss"


def method_rows(outcome: Outcome) -> list[MethodRow]:
    """One row for every planned method, in the plan's order, those without a result included."""
    plan = outcome.comparison.plan
    records = outcome.comparison.table.records()
    judged = {m.name: m for m in outcome.methods}
    rows = []
    for name in plan.methods:
        own = [r for r in records if r.method == name]
        states = dict(sorted(Counter(str(r.state) for r in own if r.state != "complete").items()))
        m = judged.get(name)
        if m is None:
            pilots = outcome.law.pilot_cost if outcome.law and method(name).kind == "law" else 0.0
            spent = pilots + sum(r.cost for r in own if math.isfinite(r.cost)) / len(plan.seeds)
            why = _why_left_out(own, plan.seeds)
            if not own and pilots + outcome.run_cost > plan.runs * outcome.run_cost:
                why += f": the smaller models alone cost {words.runs(pilots / outcome.run_cost)}"
            rows.append(
                MethodRow(
                    name, method(name).title, (), (), len(own) / len(plan.seeds), states, spent, math.inf,
                    math.nan, None, False, why,
                )
            )  # fmt: skip
            continue
        total = outcome.reference.total_cost
        saving = total / m.match_cost if m.match_cost > 0 and math.isfinite(m.match_cost) else math.nan
        rows.append(
            MethodRow(
                name, m.title, tuple(m.best), tuple(t.lr for t in m.trajectories),
                statistics.fmean(t.trials for t in m.trajectories), states, m.total_cost, m.match_cost,
                saving, m.versus_reference, name == outcome.reference.name,
            )
        )  # fmt: skip
    return rows


def _why_left_out(own: Sequence[TrialRecord], seeds: Sequence[int]) -> str:
    if not own:
        return "no trial was run"
    finished = {r.seed for r in own if r.state == "complete" and math.isfinite(r.loss)}
    missing = [s for s in seeds if s not in finished]
    return f"no finished trial with a finite loss for seed {words.listed([str(s) for s in missing])}"


@dataclass(frozen=True)
class ComputeLine:
    """Best loss so far of one method: of each seed, and the median over seeds."""

    method: str
    title: str
    seeds: tuple[Trajectory, ...]
    cost: tuple[float, ...]
    median: tuple[float, ...]


@dataclass(frozen=True)
class LossAgainstCompute:
    """Best loss so far against FLOPs spent, for every method."""

    run_cost: float
    lines: tuple[ComputeLine, ...]
    reference_best: float
    """Median over seeds of the reference's best loss."""
    reference_title: str

    @property
    def absent(self) -> str:
        """Why nothing can be drawn; empty where it can."""
        if not (math.isfinite(self.run_cost) and self.run_cost > 0):
            return "The trials recorded no cost in FLOPs, so loss cannot be shown against compute."
        return ""

    @property
    def summary(self) -> str:
        """The figure in words."""
        parts = []
        for line in self.lines:
            parts.append(
                f"{line.title}: {words.loss(line.median[-1])} after {words.runs(line.cost[-1] / self.run_cost)}"
            )
        text = f"Best loss at the end of each method's budget (median over seeds): {'; '.join(parts)}."
        pilots = [t.pilot_cost for line in self.lines for t in line.seeds if t.pilot_cost > 0]
        if pilots:
            text += (
                f" The law's curve starts only after its smaller models have been paid for "
                f"({words.runs(statistics.fmean(pilots) / self.run_cost)})."
            )
        return text


def loss_against_compute(outcome: Outcome) -> LossAgainstCompute:
    """Best loss so far; a law's trajectories begin after the cost of its pilots."""
    lines = []
    for m in outcome.methods:
        at = sorted({c for t in m.trajectories for c in t.cost})
        median = [statistics.median(_best_at(t, c) for t in m.trajectories) for c in at]
        lines.append(ComputeLine(m.name, m.title, m.trajectories, tuple(at), tuple(median)))
    best = statistics.median(outcome.reference.best)
    return LossAgainstCompute(outcome.run_cost, tuple(lines), best, outcome.reference.title)


def _best_at(trajectory: Trajectory, cost: float) -> float:
    i = bisect.bisect_right(trajectory.cost, cost)
    return trajectory.best[i - 1] if i else math.inf


@dataclass(frozen=True)
class RateLine:
    """Step size over the best trial of one method and seed."""

    method: str
    title: str
    seed: int
    trial: str
    tokens: tuple[float, ...]
    step_size: tuple[float, ...]


@dataclass(frozen=True)
class RateTrajectories:
    """How the learning rate went in the best trial of each method and seed."""

    lines: tuple[RateLine, ...]
    without_curve: tuple[str, ...]
    """Titles of methods whose best trials recorded no step sizes."""

    @property
    def absent(self) -> str:
        """Why nothing can be drawn; empty where it can."""
        return "" if self.lines else "No trial recorded its step size, so there are no trajectories to show."

    @property
    def summary(self) -> str:
        """The figure in words."""
        parts = []
        for title in dict.fromkeys(line.title for line in self.lines):
            own = [line for line in self.lines if line.title == title]
            peaks = [max(line.step_size) for line in own]
            ends = [line.step_size[-1] for line in own]
            parts.append(f"{title} peaked at {words.span(peaks)} and ended at {words.span(ends)}")
        text = f"Step size of the best trials: {'; '.join(parts)}."
        if self.without_curve:
            text += f" No step sizes were recorded for {words.listed(self.without_curve)}."
        return text


def rate_trajectories(outcome: Outcome) -> RateTrajectories:
    """Step sizes of the best trials, points that are not positive and finite left out."""
    records = outcome.comparison.table.records()
    lines, without = [], []
    for m in outcome.methods:
        for t in m.trajectories:
            own = [r for r in records if r.method == m.name and r.seed == t.seed and r.state == "complete"]
            best = min(own, key=lambda r: r.loss)
            points = (
                [(d, a) for d, a in zip(best.curve.tokens, best.curve.step_size, strict=True)
                 if math.isfinite(a) and a > 0]
                if best.curve
                else []
            )  # fmt: skip
            if len(points) < 2:
                without.append(m.title)
                continue
            tokens, sizes = zip(*points, strict=True)
            lines.append(RateLine(m.name, m.title, t.seed, best.trial, tokens, sizes))
    return RateTrajectories(tuple(lines), tuple(dict.fromkeys(without)))


@dataclass(frozen=True)
class TrialRow:
    """One line of the table of all trials."""

    record: TrialRecord
    title: str


def trial_rows(outcome: Outcome) -> list[TrialRow]:
    """Every trial in the order of the table: smaller models first."""
    return [
        TrialRow(r, "Smaller model" if r.method == PILOT else _title(r.method))
        for r in outcome.comparison.table.records()
    ]


def _title(name: str) -> str:
    try:
        return method(name).title
    except ValueError:
        return name


MATCH_WORDS = f"{100 * MATCH:g} %"
