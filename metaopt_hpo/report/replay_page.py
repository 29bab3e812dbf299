"""A replay of search methods on a table: the curves of what each one spent, and their page."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from metaopt_hpo.comparison.replay import ReplayResult
from metaopt_hpo.report import sections
from metaopt_hpo.report.axes import empty_figure, log_axis
from metaopt_hpo.report.palette import NEUTRAL, of_method
from metaopt_hpo.report.words import count


def replay_curves(result: ReplayResult) -> go.Figure:
    """Best excess so far against what was spent: median over seeds for each method."""
    plot = empty_figure()
    cost = np.geomspace(0.5, max(float(result.trace["cost"].max()), 2.0), 120)
    floor = 1e-4
    for method, by_method in result.trace.groupby("method", sort=False):
        curves = []
        for _, g in by_method.groupby("seed"):
            index = np.searchsorted(g["cost"].to_numpy(), cost, side="right") - 1
            reached = np.where(index >= 0, g["excess"].to_numpy()[np.maximum(index, 0)], np.nan)
            curves.append(np.maximum(reached, floor))
        stacked = np.array(curves)
        known = np.isfinite(stacked).mean(axis=0) >= 0.5
        median = np.full(cost.size, np.nan)
        median[known] = np.nanmedian(stacked[:, known], axis=0)
        look = of_method(str(method))
        line = {"color": look.colour, "dash": look.dash, "shape": "hv"}
        plot.add_scatter(x=cost, y=100 * median, mode="lines", line=line, name=str(method))
    for t in result.thresholds:
        plot.add_hline(y=100 * t, line={"dash": "dot", "width": 1, "color": NEUTRAL.colour})
    log_axis(plot.update_xaxes, float(cost[0]), float(cost[-1]), "Spent, in target runs, pilots included")
    log_axis(
        plot.update_yaxes, 100 * floor, max(100 * float(result.trace["excess"].max()), 1.0), "Excess loss, %"
    )
    return plot


def replay_page(result: ReplayResult, table: str) -> str:
    """A replay as a page: which method came near the best first, the curves, and the table behind them."""
    summary = result.summary()
    within = f"{result.thresholds[len(result.thresholds) // 2]:.2%}"
    rows = summary[summary["within"] == within].sort_values("median", kind="stable")
    best = rows.iloc[0]
    if best["reached"] < 0.5:
        answer = f"No method came within {within} of the best run in half of its searches."
    else:
        others = "; ".join(f"{r['method']} {r['median']:.1f}" for r in rows.iloc[1:].to_dict("records"))
        answer = (
            f"{best['method']} came within {within} of the best run after {best['median']:.1f} target runs (median"
            + (f"; {others}" if others else "")
            + f"); the whole grid is {result.grid_size} runs."
        )
    cells = [
        (r["method"], r["within"], *(f"{r[k]:.2f}" for k in ("median", "mean", "p90")), f"{r['reached']:.0%}")
        for r in summary.to_dict("records")
    ]
    head = ("method", "within", "median", "mean", "90th percentile", "seeds that reached it")
    size, tokens = result.target
    return sections.page(
        [
            sections.section(
                "Excess loss against what was spent",
                sections.figure(
                    replay_curves(result),
                    "replay",
                    alt="Best excess loss so far against what was spent, in target runs, median over seeds",
                    summary="Excess of the best run so far over the table's best run, against what was spent (1 is the "
                    "cost of one run of the target); median over seeds. Dotted lines are the thresholds of the table "
                    "below.",
                ),
            ),
            sections.section(
                "Target runs to come near the best, pilots included",
                sections.table(head, cells, numbers_from=2, label="Target runs to come near the best"),
            ),
        ],
        title=f"Search methods replayed on {table}",
        answer=answer,
        sources=[sections.Source(f"Every loss is a run of {table}; metaopt-hpo replay searches it again")],
        kicker=f"Target: {count(size)} parameters, {count(tokens)} tokens",
    )
