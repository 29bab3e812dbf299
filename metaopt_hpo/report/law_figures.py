"""Figures of a law: slices of its surface, and its optimum against scale.

Each takes plain results and returns a Plotly figure; data about which a figure can be tested (points, bands) are its
traces. `law_page` puts them on one page.
"""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go

from metaopt_hpo.report.axes import empty_figure, log_axis
from metaopt_hpo.report.law_runs import at_defaults, grids_of, span
from metaopt_hpo.report.palette import LAW, NEUTRAL, of_rank
from metaopt_hpo.report.words import count
from metaopt_hpo.scaling import Law
from metaopt_hpo.scaling.sameness import SAME
from metaopt_hpo.trials.table import TrialTable

BAND = "rgba(181, 82, 159, 0.18)"
"""The law's colour, thin enough for lines to show through."""

SLICE_TOP = 0.06
"""Excess loss, of the least, above which a run is drawn at the figure's edge."""


def surface_slices(law: Law, table: TrialTable, *, cells: int = 6) -> go.Figure:
    """Loss against lr in several cells: measured runs at the batch nearest the law's optimum, and the law there.

    Each cell's loss is shown over the least the law gives it, so that all sizes can be compared; runs beyond
    `SLICE_TOP` are at the top edge.

    Args:
        law: a fitted law.
        table: the trials, fitted on or held out.
        cells: how many cells to show, spread over size × tokens.
    """
    plot = empty_figure()
    frame = at_defaults(law, table)
    keys = sorted(
        {*zip(frame["size"].tolist(), frame["tokens"].tolist(), strict=True)}, key=lambda c: c[0] * c[1]
    )
    chosen = [
        keys[i] for i in sorted({round(i) for i in np.linspace(0, len(keys) - 1, min(cells, len(keys)))})
    ]
    for rank, (size, tokens) in enumerate(chosen):
        group = frame[(frame["size"] == size) & (frame["tokens"] == tokens)]
        wanted = law.predict(size, tokens).batch.value
        batches = group["batch"].unique()
        batch = float(batches[np.abs(np.log(batches / wanted)).argmin()])
        runs = group[group["batch"] == batch].sort_values("lr")
        look = of_rank(rank, len(chosen))
        name = f"{count(size)} parameters, {count(tokens)} tokens"
        lrs = np.geomspace(runs["lr"].min() / 1.3, runs["lr"].max() * 1.3, 60)
        losses = law.loss(size, tokens, batch, lrs)
        least = float(losses.min())
        plot.add_scatter(
            x=runs["lr"],
            y=np.minimum(runs["loss"] / least - 1, SLICE_TOP),
            customdata=runs["loss"],
            hovertemplate="lr %{x:.3g}, loss %{customdata:.4f}",
            mode="markers",
            marker={"color": look.colour, "symbol": look.symbol},
            legendgroup=name,
            name=name,
        )
        plot.add_scatter(
            x=lrs, y=losses / least - 1, mode="lines", line={"color": look.colour}, name=name, hoverinfo="skip",
            legendgroup=name, showlegend=False,
        )  # fmt: skip
    log_axis(plot.update_xaxes, *span(frame["lr"]), "Learning rate")
    plot.update_yaxes(
        title_text="Loss above the law's minimum", tickformat=".1%", range=[-0.004, 1.03 * SLICE_TOP]
    )
    return plot


def _stability(plot: go.Figure, law: Law, places: list[tuple[float, float, float]]) -> list[float]:
    """A line where half of the runs diverge, at the law's batch; its learning rates."""
    at = [law.edge_lr(size, tokens, law.predict(size, tokens).batch.value) for _, size, tokens in places]
    plot.add_scatter(
        x=[x for x, _, _ in places],
        y=at,
        mode="lines",
        line={"dash": "dot", "color": NEUTRAL.colour},
        name="half of the runs diverge",
        meta="edge",
        hovertemplate="half of the runs diverge at lr %{y:.2e}<extra></extra>",
    )
    return at


def optimum_against(
    law: Law, table: TrialTable | None, what: str = "lr", *, axis: str = "size", reach: float = 8.0
) -> go.Figure:
    """Optimal lr or batch against size or tokens: the law with its interval, and each cell's best run.

    Where tokens were tied to size there is one line, along their path: across it the trials say nothing.

    Args:
        law: a fitted law.
        table: trials whose best runs are shown, those at a grid's edge as open markers; None for the law alone.
        what: "lr" or "batch".
        axis: "size" (one line for each of a few tokens) or "tokens" (one line for each of a few sizes).
        reach: how far beyond the fitted range the lines go.

    Further coordinates (`fit(..., extra=…)`) are held at the law's defaults, runs at other values left out.
    """
    if what not in ("lr", "batch") or axis not in ("size", "tokens"):
        raise ValueError(f"what must be lr or batch and axis size or tokens, got {what!r} and {axis!r}")
    plot = empty_figure()
    low, high = law.domain.size if axis == "size" else law.domain.tokens
    others = np.unique(law.cells["tokens" if axis == "size" else "size"])
    few = others[sorted({round(i) for i in np.linspace(0, len(others) - 1, min(3, len(others)))})]
    shown: list[float | None] = [None] if law.path is not None else [float(v) for v in few]
    xs = np.geomspace(low, high * reach, 40)
    values: list[float] = []
    grids = {} if table is None else grids_of(at_defaults(law, table))
    for rank, other in enumerate(shown):
        look = of_rank(rank, len(shown))
        estimates = [getattr(law.predict(*_place(law, axis, x, other)), what) for x in map(float, xs)]
        name = f"{count(other)} {'tokens' if axis == 'size' else 'parameters'}" if other else "along the path"
        if what == "lr" and law.edge is not None and rank == len(shown) - 1:
            values += _stability(plot, law, [(float(x), *_place(law, axis, float(x), other)) for x in xs])
        if rank == len(shown) - 1:
            edge = [e.high for e in estimates] + [e.low for e in reversed(estimates)]
            plot.add_scatter(
                x=[*xs, *xs[::-1]],
                y=edge,
                fill="toself",
                fillcolor=BAND,
                line={"width": 1, "color": LAW.colour},
                hoverinfo="skip",
                name="interval",
            )
            values += edge
        plot.add_scatter(
            x=xs, y=[e.value for e in estimates], mode="lines", line={"color": look.colour}, name=name
        )
        for (size, tokens), grid in grids.items():
            if other and not math.isclose(tokens if axis == "size" else size, other, rel_tol=SAME):
                continue
            open_marker = grid.at_edge()[0 if what == "lr" else 1]
            best = grid.best_lr if what == "lr" else grid.best_batch
            values.append(best)
            label = f"best run, {name}"
            plot.add_scatter(
                x=[size if axis == "size" else tokens],
                y=[best],
                mode="markers",
                marker={
                    "color": look.colour,
                    "symbol": look.symbol + ("-open" if open_marker else ""),
                    "size": 9,
                },
                name=label,
                legendgroup=label,
                showlegend=all(trace.name != label for trace in plot.data),
            )
    plot.add_vline(x=high, line={"dash": "dot", "color": NEUTRAL.colour, "width": 1})
    log_axis(plot.update_xaxes, float(xs[0]), float(xs[-1]), "Parameters" if axis == "size" else "Tokens")
    log_axis(
        plot.update_yaxes,
        *span(values),
        "Optimal learning rate" if what == "lr" else "Optimal batch (tokens)",
    )
    return plot


def _place(law: Law, axis: str, x: float, other: float | None) -> tuple[float, float]:
    """(size, tokens) at a figure's x: at the other one given, else on the path along which tokens were tied to size."""
    if other is not None:
        return (x, other) if axis == "size" else (other, x)
    assert law.path is not None
    log_factor, power = law.path
    if axis == "size":
        return x, math.exp(log_factor + power * math.log(x))
    return math.exp((math.log(x) - log_factor) / power), x
