"""Figures of a law: slices of its surface, its optimum against scale, residuals, calibration, and replayed searches.

Each takes plain results and returns a Plotly figure; data about which a figure can be tested (points, bands) are its
traces. `law_page` puts them on one page that needs no network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from metaopt_hpo.atomic import write_text
from metaopt_hpo.comparison.replay import ReplayResult
from metaopt_hpo.report import sections
from metaopt_hpo.report.axes import empty_figure, log_axis
from metaopt_hpo.report.palette import LAW, NEUTRAL, of_method, of_rank
from metaopt_hpo.report.words import count, scientific
from metaopt_hpo.scaling import Law
from metaopt_hpo.scaling.fitting.grid import CellGrid
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
    frame = _usual(law, table)
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
    log_axis(plot.update_xaxes, *_span(frame["lr"]), "Learning rate")
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
    grids = {} if table is None else _grids(_usual(law, table))
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
        *_span(values),
        "Optimal learning rate" if what == "lr" else "Optimal batch (tokens)",
    )
    return plot


def residuals(law: Law, table: TrialTable) -> go.Figure:
    """What the law misses on each run, in percent of loss, against the run's distance from the optimal lr."""
    plot = empty_figure()
    frame = _complete(table)
    extra = _extra(law, frame)
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
    log_axis(plot.update_xaxes, *_span(distance), "lr / optimal lr")
    plot.update_yaxes(title_text="Residual, % of loss")
    return plot


def calibration(law: Law, table: TrialTable) -> go.Figure:
    """Share of held-out cells inside the law's intervals against the level of the interval; the diagonal is perfect.

    Intervals of other levels are the law's own, scaled as those of a normal distribution.
    """
    from statistics import NormalDist

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
    for (size, tokens), grid in _grids(_usual(law, table)).items():
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


SLICES, RESIDUALS, CALIBRATION = (
    "Loss against learning rate",
    "Residuals",
    "Calibration on the sizes held out",
)
OPTIMUM = (
    "Lines are the law; the band is the interval of the last line in the legend. Markers are the best run of each size "
    "and token count, open where that run has the lowest or highest value that was tried. Right of the dotted line the "
    "law is extrapolated."
)
CAPTIONS = {
    SLICES: "Points are runs, lines are the law, both as a difference from the lowest loss that the law predicts for "
    f"that size and token count; runs more than {SLICE_TOP:.0%} above it are drawn at the top edge.",
    RESIDUALS: "Residual of each run (measured loss minus the law's, in percent of loss) against its lr, as a "
    "multiple of the predicted optimum. A pattern here means the law's form does not fit.",
    CALIBRATION: "Share of held-out cells (one size and token count each) inside the law's intervals, against the "
    "level of the interval; below the diagonal the intervals are too short.",
}


def law_page(
    title: str,
    law: Law,
    figures: Sequence[tuple[str, go.Figure]],
    path: str | Path,
    sources: Sequence[sections.Source] = (),
) -> Path:
    """One self-contained HTML page: what the law says in a sentence, in words, and in figures with their headings."""
    size, tokens = law.domain.size[1], law.domain.tokens[1]
    found = law.predict(size, tokens)
    answer = (
        f"At {count(size)} parameters and {count(tokens)} tokens, the largest that were tried, the optimal learning "
        f"rate is {scientific(found.lr.value)} ({law.level:.0%} interval {scientific(found.lr.low)} to "
        f"{scientific(found.lr.high)})."
    )
    if found.warnings:
        reasons = "; ".join(dict.fromkeys(w.message for w in found.warnings))
        answer += f" The law warns about this prediction: {reasons}."
    parts = [
        sections.section(
            heading, sections.figure(plot, f"law-{i}", alt=heading, summary=CAPTIONS.get(heading, OPTIMUM))
        )
        for i, (heading, plot) in enumerate(figures)
    ]
    words = sections.section("The law in numbers", sections.numbers(law.describe()))
    out = Path(path)
    write_text(
        out,
        sections.page(
            [*parts, words], title=title, answer=answer, kicker="A law across model sizes", sources=sources
        ),
    )
    return out


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


def _complete(table: TrialTable) -> pd.DataFrame:
    frame = table.frame
    mask = (frame["state"] == "complete") & (frame["loss"] > 0) & np.isfinite(frame["loss"])
    usable: pd.DataFrame = frame.loc[mask]
    return usable


def _extra(law: Law, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """Each trial's further coordinates; the law's default where a trial has none."""
    if not law.axes.defaults:
        return {}
    params = [json.loads(text) for text in frame["params"]]
    return {
        name: np.array([p.get(name, default) for p in params], dtype=float)
        for name, default in law.axes.defaults.items()
    }


def _usual(law: Law, table: TrialTable) -> pd.DataFrame:
    """Completed trials at the law's defaults of further coordinates."""
    frame = _complete(table)
    keep = np.ones(len(frame), dtype=bool)
    for name, values in _extra(law, frame).items():
        keep &= np.isclose(values, law.axes.defaults[name], rtol=1e-6)
    return frame.loc[keep] if keep.any() else frame


def _place(law: Law, axis: str, x: float, other: float | None) -> tuple[float, float]:
    """(size, tokens) at a figure's x: at the other one given, else on the path along which tokens were tied to size."""
    if other is not None:
        return (x, other) if axis == "size" else (other, x)
    assert law.path is not None
    log_factor, power = law.path
    if axis == "size":
        return x, math.exp(log_factor + power * math.log(x))
    return math.exp((math.log(x) - log_factor) / power), x


def _grids(frame: pd.DataFrame) -> dict[tuple[float, float], CellGrid]:
    out = {}
    for _, g in frame.groupby(["size", "tokens"]):
        size, tokens, lr, batch, loss = (
            g[c].to_numpy(dtype=float) for c in ("size", "tokens", "lr", "batch", "loss")
        )
        out[float(size[0]), float(tokens[0])] = CellGrid(lr, batch, loss)
    return out


def _span(values: object) -> tuple[float, float]:
    v = np.asarray(values, dtype=float)
    v = v[np.isfinite(v) & (v > 0)]
    return float(v.min()), float(v.max())
