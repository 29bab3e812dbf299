"""`plot`: the figure of a result, in Plotly or matplotlib, for notebooks and scripts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import plotly.graph_objects as go

from metaopt_hpo.comparison.outcome import Outcome, judge
from metaopt_hpo.comparison.replay import ReplayResult
from metaopt_hpo.comparison.results import Comparison
from metaopt_hpo.report import (
    attribution_page,
    cost_views,
    figures,
    law_figures,
    law_misses,
    law_views,
    prediction_page,
    replay_page,
    rule_page,
    search_views,
    trial_figures,
    trial_views,
)
from metaopt_hpo.report.axes import empty_figure, log_axis
from metaopt_hpo.report.legends import Figure
from metaopt_hpo.report.matplotlib_figures import to_matplotlib
from metaopt_hpo.report.palette import of_rank
from metaopt_hpo.report.words import count
from metaopt_hpo.scaling import Law
from metaopt_hpo.scaling.preregistration import Registered, Score
from metaopt_hpo.theory.rule_check import RuleCheck
from metaopt_hpo.trials.table import TrialTable

Backend = Literal["plotly", "matplotlib"]

HEIGHT = 430

OF_OUTCOME: dict[str, tuple[Callable[[Outcome], Any], Callable[[Any], Figure]]] = {
    "compute": (search_views.loss_against_compute, figures.loss_against_compute),
    "trajectories": (search_views.rate_trajectories, figures.rate_trajectories),
    "curves": (trial_views.loss_curves, trial_figures.loss_curves),
    "importance": (
        lambda o: trial_views.importance(
            [r for r in o.comparison.table.records() if r.size == o.comparison.plan.size]
        ),
        trial_figures.importance,
    ),
    "rates": (law_views.loss_at_rate, figures.loss_at_rate),
    "law": (law_views.optimal_rate, figures.optimal_rate),
    "cost": (cost_views.search_cost, figures.search_cost),
}
OF_LAW = ("lr", "batch", "slices", "residuals", "calibration")
OF_ATTRIBUTION = ("parts", "paths")


def plot(
    result: object,
    what: str = "",
    *,
    table: TrialTable | None = None,
    backend: Backend = "plotly",
    axes: Any = None,
) -> Any:
    """The figure of a result.

    Args:
        result: a trial table, a law, a comparison or its outcome, a replay, a rule's check, an attribution, or a
            registered prediction or its score.
        what: which of its figures, the first where none is named. Comparison: "compute", "trajectories", "curves",
            "importance", "rates", "law" or "cost". Law: "lr" or "batch" against size, and with a table "slices",
            "residuals" or "calibration". Attribution: "parts" or "paths".
        table: for a law, the trials to show with it.
        backend: "plotly" or "matplotlib".
        axes: matplotlib Axes to draw on.

    Returns:
        A Plotly Figure, or matplotlib Axes.

    Raises:
        ValueError: the result has no such figure, or cannot be drawn, with the reason.

    Examples:
        >>> from metaopt_hpo import plot
        >>> from metaopt_hpo.scaling import library
        >>> law = library.load("fitted-step-law").law
        >>> type(plot(law, "lr")).__name__
        'Figure'
    """
    if backend not in ("plotly", "matplotlib"):
        raise ValueError(f"backend must be 'plotly' or 'matplotlib', got {backend!r}")
    drawn = _figure(result, what, table)
    if backend == "matplotlib":
        return to_matplotlib(drawn, axes)
    # black on white, whatever the notebook's own colours
    return drawn.update_layout(paper_bgcolor="white", plot_bgcolor="white", height=HEIGHT)


def _figure(result: object, what: str, table: TrialTable | None) -> go.Figure:
    if isinstance(result, Comparison):
        result = judge(result)
    if isinstance(result, Outcome):
        view_of, draw = OF_OUTCOME[_one_of(what, tuple(OF_OUTCOME))]
        view = view_of(result)
        if view.absent:
            raise ValueError(view.absent)
        return draw(view).plot
    if isinstance(result, Law):
        return _of_law(result, _one_of(what, OF_LAW), table)
    if isinstance(result, attribution_page.Attributed):
        parts = _one_of(what, OF_ATTRIBUTION) == "parts"
        return attribution_page.parts_figure(result) if parts else attribution_page.path_figure(result)
    if what:
        raise ValueError(f"{type(result).__name__} has one figure; leave what={what!r} out")
    if isinstance(result, TrialTable):
        return losses(result)
    if isinstance(result, ReplayResult):
        return replay_page.replay_curves(result)
    if isinstance(result, RuleCheck):
        return rule_page.rule_figure(result)
    if isinstance(result, Score):
        return prediction_page.interval_figure(result.registered, result.loss)
    if isinstance(result, Registered):
        return prediction_page.interval_figure(result)
    raise ValueError(
        f"there is no figure of a {type(result).__name__}; plot a table, a law, a comparison or a check"
    )


def _of_law(law: Law, what: str, table: TrialTable | None) -> go.Figure:
    if what == "batch" and not law.surface.has_batch:
        raise ValueError("the law was fitted to one batch and has no figure of it; ask for 'lr'")
    if what in ("lr", "batch"):
        return law_figures.optimum_against(law, table, what)
    if table is None:
        raise ValueError(f"{what!r} shows trials beside the law; pass table=")
    draw = {
        "slices": law_figures.surface_slices,
        "residuals": law_misses.residuals,
        "calibration": law_misses.calibration,
    }[what]
    return draw(law, table)


def losses(table: TrialTable) -> go.Figure:
    """Final loss against lr of every complete trial, one look a size."""
    done = [
        r
        for r in table.records()
        if r.state == "complete" and r.lr > 0 and r.loss > 0 and math.isfinite(r.loss)
    ]
    if not done:
        raise ValueError(
            "the table has no complete trial with a positive lr and loss; there is nothing to draw"
        )
    drawn = empty_figure()
    sizes = sorted({r.size for r in done})
    for rank, size in enumerate(sizes):
        look = of_rank(rank, len(sizes))
        own = [r for r in done if r.size == size]
        drawn.add_scatter(
            x=[r.lr for r in own], y=[r.loss for r in own], mode="markers", name=f"{count(size)} parameters",
            marker={"symbol": look.symbol, "size": 7, "color": look.colour},
        )  # fmt: skip
    log_axis(drawn.update_xaxes, min(r.lr for r in done), max(r.lr for r in done), "Learning rate", pad=0.06)
    log_axis(
        drawn.update_yaxes,
        min(r.loss for r in done),
        max(r.loss for r in done),
        "Final held-out loss",
        pad=0.06,
    )
    return drawn


def _one_of(what: str, known: tuple[str, ...]) -> str:
    if what and what not in known:
        raise ValueError(f"what must be one of {', '.join(known)}, got {what!r}")
    return what or known[0]
