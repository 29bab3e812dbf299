"""Figures of how far a law is off: residuals of runs, calibration of its intervals."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import plotly.graph_objects as go

from metaopt_hpo.report.axes import empty_figure, log_axis
from metaopt_hpo.report.law_runs import at_defaults, completed, coordinates, grids_of, span
from metaopt_hpo.report.palette import NEUTRAL, of_rank
from metaopt_hpo.report.words import count
from metaopt_hpo.scaling import Law
from metaopt_hpo.trials.table import TrialTable


def residuals(law: Law, table: TrialTable) -> go.Figure:
    """What the law misses on each run, in percent of loss, against the run's distance from the optimal lr."""
    plot = empty_figure()
    frame = completed(table)
    extra = coordinates(law, frame)
    n, d = frame["size"].to_numpy(dtype=float), frame["tokens"].to_numpy(dtype=float)
    lr, batch = frame["lr"].to_numpy(dtype=float), frame["batch"].to_numpy(dtype=float)
    miss = 100.0 * np.log(frame["loss"].to_numpy(dtype=float) / law.loss(n, d, batch, lr, extra=extra))
    places = list(zip(n.tolist(), d.tolist(), *(v.tolist() for v in extra.values()), strict=True))
    best = {
        at: law.predict(at[0], at[1], extra=dict(zip(extra, at[2:], strict=True))).lr.value
        for at in {*places}
    }
    distance = lr / np.array([best[at] for at in places])
    sizes = np.unique(n)
    for rank, size in enumerate(sizes):
        look = of_rank(rank, len(sizes))
        rows = n == size
        plot.add_scatter(
            x=distance[rows],
            y=miss[rows],
            mode="markers",
            marker={"color": look.colour, "symbol": look.symbol, "size": 5},
            name=f"{count(float(size))} parameters",
        )
    plot.add_hline(y=0, line={"color": NEUTRAL.colour, "width": 1})
    log_axis(plot.update_xaxes, *span(distance), "lr / optimal lr")
    plot.update_yaxes(title_text="Residual, % of loss")
    return plot


def calibration(law: Law, table: TrialTable) -> go.Figure:
    """Share of held-out cells inside the law's intervals against the level of the interval; the diagonal is perfect.

    Intervals of other levels are the law's own, scaled as those of a normal distribution.
    """
    plot = empty_figure()
    levels = np.linspace(0.05, 0.99, 40)
    base = NormalDist().inv_cdf(0.5 + 0.5 * law.level)
    plot.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        line={"dash": "dot", "color": NEUTRAL.colour},
        name="perfect",
        hoverinfo="skip",
    )
    scores: dict[str, list[float]] = {"lr": [], "batch": [], "loss": []}
    for (size, tokens), grid in grids_of(at_defaults(law, table)).items():
        p = law.predict(size, tokens)
        edges = grid.at_edge()
        for key, e, got, censored in (
            ("lr", p.lr, grid.best_lr, edges[0]),
            ("batch", p.batch, grid.best_batch, edges[1]),
            ("loss", p.loss, grid.best, False),
        ):
            if censored or e.low == e.high:
                continue
            side = e.high if got > e.value else e.low
            scores[key].append(
                abs(math.log(got / e.value)) / max(abs(math.log(side / e.value)), 1e-12) * base
            )
    for rank, (key, z) in enumerate(scores.items()):
        if z:
            look = of_rank(rank, 3)
            limits = [NormalDist().inv_cdf(0.5 + 0.5 * level) for level in levels]
            share = [float(np.mean(np.array(z) <= limit)) for limit in limits]
            plot.add_scatter(
                x=levels,
                y=share,
                mode="lines",
                line={"color": look.colour, "dash": ("solid", "dash", "dot")[rank]},
                name=f"{key}, {len(z)} cells",
            )
    plot.update_xaxes(title_text="Level of the interval", range=[0, 1])
    plot.update_yaxes(title_text="Share of held-out cells inside", range=[0, 1.02])
    return plot
