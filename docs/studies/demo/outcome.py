"""What the demo says at its end: the plan's run beside grid's and TPE's, at equal compute and with more."""

from __future__ import annotations

import math
from dataclasses import dataclass

from metaopt_hpo.comparison.methods import method
from metaopt_hpo.comparison.results import Comparison
from metaopt_hpo.plan.run import PlanRun
from metaopt_hpo.report import sections
from metaopt_hpo.trials.record import TrialRecord


@dataclass(frozen=True)
class Row:
    """A method's best loss for a compute.

    Attributes:
        title: of the method.
        runs: compute, in target runs.
        loss: best so far; NaN for none.
        lr: of that run.
    """

    title: str
    runs: float
    loss: float
    lr: float


def rows(result: PlanRun, compared: Comparison) -> list[Row]:
    """The plan's row, then each method's with no more compute than the plan's, and with all it had."""
    unit = result.plan.target_cost.flops
    target = result.target
    assert target is not None
    own = result.spent.flops / unit + target.cost / unit
    out = [Row("Plan", own, target.loss if target.state == "complete" else math.nan, _lr(target))]
    for name in compared.plan.methods:
        records = [r for r in compared.table.records() if r.method == name]
        for limit in (own, math.inf):
            kept, spent = [], 0.0
            for r in records:
                if spent + r.cost / unit > limit * 1.01:
                    break
                kept.append(r)
                spent += r.cost / unit
            done = [r for r in kept if r.state == "complete" and math.isfinite(r.loss)]
            best = min(done, key=lambda r: r.loss, default=None)
            out.append(
                Row(
                    method(name).title,
                    spent,
                    math.nan if best is None else best.loss,
                    math.nan if best is None else _lr(best),
                )
            )
    return out


def answer(result: PlanRun, compared: Comparison) -> str:
    """The page's first line."""
    table = rows(result, compared)
    plan, others = table[0], table[1:]
    rate = result.lr
    text = (
        f"Train width {result.plan.target.width} with lr {rate.value:.2g} (90 % interval {rate.low:.2g} to "
        f"{rate.high:.2g}); "
        f"the plan's run, pilots included, cost {plan.runs:.2f} target runs and reached loss {plan.loss:.4f}"
    )
    equal = [r for r in others[::2] if math.isfinite(r.loss)]
    more = [r for r in others[1::2] if math.isfinite(r.loss)]
    said = [f"{r.title} {r.loss:.4f}" for r in equal]
    whole = [f"{r.title} {r.loss:.4f} ({r.runs:.1f})" for r in more]
    nobody = "nobody finished"
    return f"{text}; with no more compute {', '.join(said) or nobody}; with more (target runs) {', '.join(whole)}."


def section(result: PlanRun, compared: Comparison) -> str:
    """The comparison as a section of the plan's page."""
    table = rows(result, compared)
    shown = [
        (
            r.title,
            f"{r.runs:.2f}",
            f"{r.loss:.4f}" if math.isfinite(r.loss) else "–",
            f"{r.loss / table[0].loss - 1:+.2%}" if math.isfinite(r.loss) else "–",
            f"{r.lr:.3g}" if math.isfinite(r.lr) else "–",
        )
        for r in table
    ]
    return sections.section(
        "Against other searches",
        sections.table(("method", "compute, target runs", "best loss", "against the plan", "lr"), shown),
        sections.words(
            "One seed: half a per cent may be chance. Each method is shown with no more compute than the plan had, "
            "then with all it had."
        ),
    )


def _lr(r: TrialRecord) -> float:
    return r.found_lr if r.self_tuning and r.found_lr > 0 else r.lr
