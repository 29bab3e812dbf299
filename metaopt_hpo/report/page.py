"""The report: one HTML file that needs no network, for a screen, a phone and paper.

`render` is a pure function of the outcome: the same outcome gives the same bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from metaopt_hpo.atomic import WriteError, write_text
from metaopt_hpo.comparison.design import ComparisonPlan
from metaopt_hpo.comparison.methods import method
from metaopt_hpo.comparison.outcome import Outcome, judge, percent
from metaopt_hpo.comparison.results import PLAN_FILE, STORE_FILE, TABLE_FILE, Comparison
from metaopt_hpo.comparison.statistics import Difference
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.report import (
    cost_views,
    figures,
    law_views,
    search_views,
    sections,
    trial_figures,
    trial_views,
    words,
)
from metaopt_hpo.report.legends import Figure
from metaopt_hpo.report.sections import METAOPTIMIZE, Panel, Source

REPORT_FILE = "report.html"


class ReportError(MetaOptError):
    """A report cannot be written."""


def report_from_folder(folder: str | os.PathLike[str]) -> Path:
    """Write `report.html` into a results folder from the trials saved there; nothing is trained.

    Raises:
        CompareError: the folder holds no finished comparison.
        OutcomeError: its trials cannot be judged.
        ReportError: the file cannot be written.
    """
    return write_report(Comparison.read(folder), Path(folder) / REPORT_FILE)


def write_report(comparison: Comparison, path: str | os.PathLike[str]) -> Path:
    """Judge a comparison and write its report; the file appears whole or not at all.

    Raises:
        OutcomeError: no method has a finished trial with a finite loss for every seed.
        ReportError: the file cannot be written.

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
        >>> from metaopt_hpo import write_report
        >>> write_report(comparison, "results/report.html").name
        'report.html'
    """
    path = Path(path)
    text = render(judge(comparison))
    try:
        write_text(path, text)
    except WriteError as error:
        raise ReportError(f"the report is not written: {error}") from error
    return path


def render(outcome: Outcome) -> str:
    """The report as one HTML text, about 5 MB: Plotly's script is inside, once."""
    filters: dict[str, Callable[..., Any]] = {
        "count": words.count, "sci": _scientific, "loss": words.loss, "spread": words.spread,
        "times": words.times, "runs": words.runs, "plural": words.plural, "listed": words.listed,
        "percent": percent, "span": words.span, "sentence": words.sentence, "interval": _interval,
        "gmean": words.geometric_mean, "number": _number,
    }  # fmt: skip
    plan = outcome.comparison.plan
    cost = cost_views.search_cost(outcome)
    trials = search_views.trial_rows(outcome)
    law = law_views.optimal_rate(outcome)
    return sections.render(
        "report.html.j2",
        filters,
        outcome=outcome,
        plan=plan,
        titles=[method(m).title for m in plan.methods],
        rows=search_views.method_rows(outcome),
        match=search_views.MATCH_WORDS,
        tiles=_tiles(cost),
        law=law,
        cost=cost,
        trials=trials,
        sources=_sources(plan),
        states=Counter(t.record.state for t in trials),
        totals=_totals(outcome),
        plan_json=json.dumps(plan.to_json(), indent=2, ensure_ascii=False),
        panels={
            "compute": _panel(
                "compute",
                "Best loss against compute",
                search_views.loss_against_compute(outcome),
                figures.loss_against_compute,
            ),
            "trajectories": _panel(
                "trajectories",
                "Learning rate during training",
                search_views.rate_trajectories(outcome),
                figures.rate_trajectories,
            ),
            "curves": _panel(
                "curves",
                "Loss of every trial during training",
                trial_views.loss_curves(outcome),
                trial_figures.loss_curves,
            ),
            "importance": _panel(
                "importance",
                "Importance of each parameter",
                trial_views.importance(
                    [r for r in outcome.comparison.table.records() if r.size == plan.size]
                ),
                trial_figures.importance,
            ),
            "rates": _panel(
                "rates",
                "Loss against learning rate at every size",
                law_views.loss_at_rate(outcome),
                figures.loss_at_rate,
            ),
            "law": _panel("law", "Best learning rate against model size", law, figures.optimal_rate),
            "cost": _panel("cost", "Cost of the search with and without it", cost, figures.search_cost),
        },
    )


def _sources(plan: ComparisonPlan) -> list[Source]:
    """The files of the comparison, which lie beside its report, and what its methods come from."""
    store = {
        "optuna": (
            f"{STORE_FILE}: the Optuna studies, for optuna-dashboard sqlite:///{STORE_FILE}",
            STORE_FILE,
        ),
        "ray": (f"{STORE_FILE}.ray: the Ray Tune experiments", f"{STORE_FILE}.ray"),
    }.get(plan.engine)
    found = [
        Source(f"{TABLE_FILE}: every trial, for metaopt-hpo inspect {TABLE_FILE}", TABLE_FILE),
        Source(f"{PLAN_FILE}: what was asked and on which machine", PLAN_FILE),
        *([Source(*store)] if store else []),
    ]
    return found + ([METAOPTIMIZE] if "metaoptimize" in plan.methods else [])


def _panel(name: str, alt: str, view: Any, draw: Callable[[Any], Figure]) -> Panel:
    if view.absent:
        return Panel(name, alt, "", view.absent)
    figure = draw(view)
    return sections.panel(figure.plot, name, alt, view.summary, figure.note)


@dataclass(frozen=True)
class _Tile:
    """A key number: what a single run reached, and at what cost."""

    label: str
    loss: str
    loss_note: str
    cost: str
    cost_note: str


def _tiles(cost: cost_views.SearchCost) -> list[_Tile]:
    tiles = []
    for row in cost.rows[1:]:
        if row.difference is None or not row.losses:
            continue
        change = f"{100 * math.expm1(row.difference.mean):+.1f} %".replace("-", "−")
        note = percent(row.difference).partition("(")[2].rstrip(")")
        share = 1 / row.saving if row.saving > 0 else math.nan
        tiles.append(
            _Tile(
                row.label,
                change,
                note,
                f"{share:.0%}" if math.isfinite(share) else words.DASH,
                row.saving_words,
            )
        )
    return tiles


def _totals(outcome: Outcome) -> dict[str, float]:
    frame = outcome.comparison.table.frame
    return {
        "trials": len(frame),
        "cost": outcome.comparison.table.cost(),
        "seconds": float(frame["seconds"].sum(min_count=1)),
        "joules": float(frame["joules"].sum(min_count=1)),
    }


def _number(x: float) -> str:
    """Full precision for a data attribute; empty where there is no number, so that it sorts last."""
    return repr(float(x)) if math.isfinite(x) else ""


def _interval(d: Difference) -> str:
    """The interval alone, for a cell whose column says what it is."""
    return f"{percent(d).split('interval ')[1].split(',')[0]}" if d.pairs > 1 else "one seed, no interval"


def _scientific(x: float, digits: int = 2) -> Markup:
    return sections.tied(words.scientific(x, digits))
