"""What the report says about the cost of a good rate at the target size, with the search and without it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from metaopt_hpo.comparison.outcome import MethodOutcome, Outcome, percent
from metaopt_hpo.comparison.statistics import Difference
from metaopt_hpo.report import words


@dataclass(frozen=True)
class CostRow:
    """One way to get a model of the target size: what it cost, and the loss it reached."""

    name: str
    label: str
    pilot_cost: float
    target_cost: float
    losses: tuple[float, ...]
    """Of each seed; empty where the way was not run."""
    difference: Difference | None
    saving: float
    """The reference's whole cost over this one; NaN for the reference."""
    expected: str = ""
    """The loss a law expects, where the way was not run."""

    @property
    def cost(self) -> float:
        """FLOPs a seed."""
        return self.pilot_cost + self.target_cost

    @property
    def saving_words(self) -> str:
        """`9.6× less` or `1.3× more`."""
        if not math.isfinite(self.saving) or self.saving <= 0:
            return words.DASH
        if self.saving >= 1:
            return f"{words.times(self.saving)} less"
        return f"{words.times(1 / self.saving)} more"


@dataclass(frozen=True)
class SearchCost:
    """The search at the target size, with and without what avoids it."""

    run_cost: float
    rows: tuple[CostRow, ...]
    refusal: str
    """Why no law was fitted, in a sentence; empty where one was, or where no smaller model was run."""

    @property
    def absent(self) -> str:
        """Why nothing can be drawn; empty where it can."""
        if not (math.isfinite(self.run_cost) and self.run_cost > 0):
            return "The trials recorded no cost in FLOPs, so costs cannot be compared."
        return ""

    @property
    def summary(self) -> str:
        """The figure in words."""
        first, *others = self.rows
        text = f"{first.label}: cost {words.runs(first.cost / self.run_cost)} and reached {words.spread(first.losses)}"
        for row in others:
            reached = (
                f"reached {words.spread(row.losses)}"
                if row.losses
                else f"is expected to reach {row.expected}; it was not run"
            )
            text += f". {row.label}: cost {words.runs(row.cost / self.run_cost)}"
            text += f" ({row.saving_words})" if math.isfinite(row.saving) else ""
            text += f" and {reached}"
            if row.difference is not None:
                text += f", {percent(row.difference)} against the first"
        return text + "."


def search_cost(outcome: Outcome) -> SearchCost:
    """Rows: the reference's whole search, then the first run alone of every method that can do with one."""
    reference, law = outcome.reference, outcome.law
    whole = f"{reference.title}, all {statistics.fmean(t.trials for t in reference.trajectories):.3g} trials"
    rows = [
        _cost_row(
            reference, whole, [t.cost[-1] for t in reference.trajectories], reference.best, None, math.nan
        )
    ]
    for m in outcome.methods:
        if m.kind == "external":
            continue
        label = (
            f"One {m.title} run"
            if m.kind == "self-tuning"
            else "Smaller models, a law, and one run at its rate"
        )
        costs = [t.cost[0] for t in m.trajectories]
        saving = reference.total_cost / statistics.fmean(costs) if statistics.fmean(costs) > 0 else math.nan
        rows.append(_cost_row(m, label, costs, m.first, m.first_versus_reference, saving))
    if law and law.prediction and not any(m.kind == "law" for m in outcome.methods):
        p = law.prediction.loss
        cost = law.pilot_cost + outcome.run_cost
        rows.append(
            CostRow(
                "law", "Smaller models, a law, and one run at its rate", law.pilot_cost, outcome.run_cost, (), None,
                reference.total_cost / cost if cost > 0 else math.nan,
                f"{words.loss(p.value)} ({words.loss(p.low)} to {words.loss(p.high)})",
            )
        )  # fmt: skip
    return SearchCost(outcome.run_cost, tuple(rows), law.refusal if law else "")


def _cost_row(
    m: MethodOutcome, label: str, costs: Sequence[float], losses: Sequence[float],
    difference: Difference | None, saving: float,
) -> CostRow:  # fmt: skip
    pilots = statistics.fmean(t.pilot_cost for t in m.trajectories)
    target = statistics.fmean(costs) - pilots
    kept = tuple(x if math.isfinite(x) else math.nan for x in losses)
    return CostRow(m.name, label, pilots, target, kept, difference, saving)
