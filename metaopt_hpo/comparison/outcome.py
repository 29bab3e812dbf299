"""What a comparison showed: best loss against compute, rates found, cost to match the grid, and a verdict.

Reads only the trial table and the plan, so that a saved comparison can be judged again at any time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from metaopt_hpo import markup
from metaopt_hpo.comparison.claims import Claim, claim, percent, runs
from metaopt_hpo.comparison.methods import Kind, method
from metaopt_hpo.comparison.results import PILOT, Comparison
from metaopt_hpo.comparison.statistics import Difference, paired_difference
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling import Law, LawRefused, Prediction, fit
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable

MATCH = 0.005
"""Relative excess over the reference's best loss that counts as matching it: about one seed's noise."""


__all__ = [
    "MATCH",
    "LawOutcome",
    "MethodOutcome",
    "Outcome",
    "OutcomeError",
    "Trajectory",
    "judge",
    "percent",
]


class OutcomeError(MetaOptError):
    """A comparison has nothing that can be judged."""


@dataclass(frozen=True)
class Trajectory:
    """Best loss so far of one method and seed: after `cost[i]` FLOPs it was `best[i]`."""

    seed: int
    cost: tuple[float, ...]
    best: tuple[float, ...]
    lr: float
    """The rate of the best trial: its lr, or the plateau step size where it found its own; NaN without one."""
    trials: int
    pilot_cost: float
    """FLOPs spent at smaller sizes before the first trial, included in `cost`."""

    def cost_to(self, loss: float) -> float:
        """FLOPs until the best loss was at most `loss`; inf if it never was."""
        return next((c for c, b in zip(self.cost, self.best, strict=True) if b <= loss), math.inf)


@dataclass(frozen=True)
class MethodOutcome:
    """One method over all seeds."""

    name: str
    title: str
    kind: Kind
    trajectories: tuple[Trajectory, ...]
    versus_reference: Difference | None
    """ln(best loss / reference's best), paired by seed, at the full budget; None for the reference itself."""
    first_versus_reference: Difference | None
    """The same for the method's first trial alone against the reference's whole search."""
    match_cost: float
    """Median over seeds of the FLOPs to come within `MATCH` of the reference's best; inf if rarely reached."""
    total_cost: float
    """Mean FLOPs spent a seed, pilots included."""

    @property
    def best(self) -> list[float]:
        """Best loss of each seed."""
        return [t.best[-1] for t in self.trajectories]

    @property
    def first(self) -> list[float]:
        """Loss after the first trial of each seed."""
        return [t.best[0] for t in self.trajectories]


@dataclass(frozen=True)
class LawOutcome:
    """What the pilots of all seeds say about the target size, against what was found there."""

    law: Law | None
    refusal: str
    prediction: Prediction | None
    pilot_cost: float
    """Mean FLOPs a seed of all pilots."""
    found_lr: float
    """lr of the reference's best trials at the target, geometric mean over seeds."""


@dataclass(frozen=True)
class Outcome:
    """Everything a report says about a comparison."""

    comparison: Comparison
    methods: tuple[MethodOutcome, ...]
    reference: MethodOutcome
    """The external search the others are held against: grid where it ran, else the first external method."""
    run_cost: float
    """FLOPs of one full run at the target size."""
    law: LawOutcome | None
    claims: tuple[Claim, ...]
    """What each method that needs no search reached against the reference, first to last."""
    notes: str = ""
    """Methods that are left out, and why."""

    def _repr_html_(self) -> str:
        """For notebooks: the verdict, and a row for every method."""
        rows = [
            (
                m.title,
                f"{statistics.fmean(m.best):.5g}",
                f"{m.total_cost:.3g}",
                percent(m.versus_reference) if m.versus_reference else "reference",
            )
            for m in self.methods
        ]
        head = ("method", "mean best loss", "FLOPs a seed", f"loss against {self.reference.title}")
        return markup.table(head, rows, caption=self.verdict)

    @property
    def verdict(self) -> str:
        """The claims and notes as one text."""
        return " ".join([*map(str, self.claims), self.notes]).strip()


def judge(comparison: Comparison) -> Outcome:
    """Work out the outcome.

    Raises:
        OutcomeError: no method ended a trial at the target size with a finite loss for every seed.

    Examples:
        >>> from metaopt_hpo import ComparisonPlan, TrialRecord, TrialTable, compare
        >>> from metaopt_hpo.comparison.table_objective import TableObjective
        >>> runs = TrialTable.from_records(
        ...     TrialRecord(size=1e6, tokens=1e8, batch=1e4, lr=x, loss=3 + 1e4 * (x - 4e-3) ** 2)
        ...     for x in (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
        ... )
        >>> plan = ComparisonPlan(
        ...     workload="table", methods=("grid", "random"), seeds=(0,), size=1e6, pilot_sizes=(), tokens=1e8,
        ...     batch=1e4, lr_bounds=(1e-3, 1.6e-2), runs=4, pilot_runs=1,
        ... )
        >>> comparison = compare(TableObjective(runs), plan, "results", workers=1)
        >>> from metaopt_hpo import judge
        >>> outcome = judge(comparison)
        >>> outcome.reference.name
        'grid'
        >>> print(outcome.verdict)
        Random search found the lowest loss. It is 3.003 on average.
    """
    # trials without a measured cost count 6·N·D
    costs = comparison.table.costs()
    records = [replace(r, cost=float(c)) for r, c in zip(comparison.table.records(), costs, strict=True)]
    plan = comparison.plan
    seeds = plan.seeds
    found = {name: _trajectories(records, name, seeds) for name in plan.methods}
    empty = [name for name, ts in found.items() if not all(t.best and math.isfinite(t.best[-1]) for t in ts)]
    usable = [name for name in plan.methods if name not in empty]
    if not usable:
        raise OutcomeError(
            "no method has a finished trial with a finite loss for every seed; run more, or raise --runs"
        )
    reference_name = next(
        (n for n in ("grid", *usable) if n in usable and method(n).kind == "external"), usable[0]
    )
    reference = found[reference_name]
    outcomes = tuple(_method_outcome(name, found[name], reference, name == reference_name) for name in usable)
    targets = [r for r in records if r.method != PILOT and r.state == "complete" and r.size == plan.size]
    run_cost = statistics.median(r.cost for r in targets) if targets else math.nan
    ref = next(o for o in outcomes if o.name == reference_name)
    law = _law_outcome(comparison, records, ref)
    spent_on_pilots = [n for n in empty if all(not t.cost for t in found[n]) and found[n][0].pilot_cost > 0]
    return Outcome(
        comparison, outcomes, ref, run_cost, law, _claims(outcomes, ref), _left_out(empty, spent_on_pilots)
    )


def _trajectories(records: Sequence[TrialRecord], name: str, seeds: Sequence[int]) -> list[Trajectory]:
    out = []
    for seed in seeds:
        pilots = (
            [r for r in records if r.method == PILOT and r.seed == seed] if method(name).kind == "law" else []
        )
        pilot_cost = sum(r.cost for r in pilots)
        spent, best, lr = pilot_cost, math.inf, math.nan
        costs: list[float] = []
        bests: list[float] = []
        trials = [r for r in records if r.method == name and r.seed == seed]
        for r in trials:
            spent += r.cost
            # a truncated run's last loss is no result
            if r.state == "complete" and r.loss < best:
                best = r.loss
                lr = r.found_lr if math.isfinite(r.found_lr) else r.lr
            costs.append(spent)
            bests.append(best)
        out.append(Trajectory(seed, tuple(costs), tuple(bests), lr, len(trials), pilot_cost))
    return out


def _method_outcome(
    name: str, own: Sequence[Trajectory], reference: Sequence[Trajectory], is_reference: bool
) -> MethodOutcome:
    def against(values: Sequence[float]) -> Difference | None:
        if not all(math.isfinite(v) for v in values):
            return None
        if min(*values, *(t.best[-1] for t in reference)) <= 0:
            raise OutcomeError(
                "a best loss is zero or negative, and relative differences have no meaning there; "
                "compare a positive loss"
            )
        return paired_difference([math.log(v) for v in values], [math.log(t.best[-1]) for t in reference])

    match = statistics.median(
        t.cost_to(r.best[-1] * (1 + MATCH)) for t, r in zip(own, reference, strict=True)
    )
    described = method(name)
    return MethodOutcome(
        name=name,
        title=described.title,
        kind=described.kind,
        trajectories=tuple(own),
        versus_reference=None if is_reference else against([t.best[-1] for t in own]),
        first_versus_reference=None if is_reference else against([t.best[0] for t in own]),
        match_cost=match,
        total_cost=statistics.fmean(t.cost[-1] for t in own),
    )


def _law_outcome(
    comparison: Comparison, records: Sequence[TrialRecord], reference: MethodOutcome
) -> LawOutcome | None:
    pilots = [r for r in records if r.method == PILOT]
    if not pilots:
        return None
    law: Law | None = None
    prediction: Prediction | None = None
    refusal = ""
    try:
        law = fit(TrialTable.from_records(pilots))
        prediction = law.predict(
            size=comparison.plan.size, tokens=comparison.plan.tokens, batch=comparison.plan.batch
        )
    except LawRefused as refused:
        refusal = refused.reason
    rates = [t.lr for t in reference.trajectories if t.lr > 0]
    return LawOutcome(
        law=law,
        refusal=refusal,
        prediction=prediction,
        pilot_cost=sum(r.cost for r in pilots) / len(comparison.plan.seeds),
        found_lr=math.exp(statistics.fmean(math.log(r) for r in rates)) if rates else math.nan,
    )


def _claims(outcomes: Sequence[MethodOutcome], reference: MethodOutcome) -> tuple[Claim, ...]:
    trials = statistics.fmean(t.trials for t in reference.trajectories)
    against = f"the best of {runs(trials, reference.title)}"
    claims = []
    for o in outcomes:
        if o.first_versus_reference is None or o.kind == "external":
            continue
        share = statistics.fmean(t.cost[0] for t in o.trajectories) / reference.total_cost
        law = o.kind == "law"
        what = "The smaller models, a law and one run at its rate" if law else f"One {o.title} run"
        claims.append(claim(what, against, o.first_versus_reference, share))
    if not claims:
        best = min(outcomes, key=lambda o: statistics.fmean(o.best))
        mean = f"{statistics.fmean(best.best):.4g} on average"
        claims.append(Claim(f"{best.title} found the lowest loss.", f"It is {mean}."))
    return tuple(claims)


def _left_out(names: Sequence[str], budget_gone: Sequence[str]) -> str:
    sentences = []
    for name in names:
        why = (
            "had no budget left after its pilots" if name in budget_gone else "finished no trial on some seed"
        )
        sentences.append(f"{method(name).title} {why} and is left out.")
    return " ".join(sentences)
