"""Axes of the report's figures: full runs with FLOPs below, and logarithms with ticks at round numbers."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go

from metaopt_hpo.report import words


def empty_figure() -> go.Figure:
    """An empty figure with the page's conventions; no template, for the style sheet sets the colours."""
    axis = {
        "showline": False,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "showgrid": True,
        "gridwidth": 1,
        "exponentformat": "power",
    }
    return go.Figure(
        layout={
            "template": "none",
            "autosize": True,
            "showlegend": True,
            "legend": {
                "orientation": "h",
                "x": 0,
                "y": 1.02,
                "yanchor": "bottom",
                "bgcolor": "rgba(0,0,0,0)",
                "maxheight": 0.9,  # the page grows a figure whose legend is tall
            },
            "dragmode": False,
            "modebar": {"bgcolor": "rgba(0,0,0,0)"},
            "hovermode": "closest",
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
            "font": {"family": "system-ui, sans-serif", "size": 12},
            "xaxis": {**axis, "automargin": True, "title": {"standoff": 10}},
            "yaxis": {**axis, "automargin": True, "title": {"standoff": 8}},
        }
    )


def run_axis(plot: go.Figure, end: float, run_cost: float) -> None:
    """An x axis in full runs, the same in FLOPs in the second line of its ticks."""
    rough = max(end, 1e-9) / 4
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough)
    ticks = [i * step for i in range(int(end / step) + 1)]
    plot.update_xaxes(
        range=[0, end * 1.03],
        tickangle=0,
        tickvals=ticks,
        ticktext=[f"{t:.6g}<br>{words.scientific(t * run_cost)}" for t in ticks],
        title_text="Full runs (FLOPs below)",
    )


def log_axis(update: Any, low: float, high: float, title: str, *, pad: float = 0.04) -> None:
    """A logarithmic axis with ticks at round numbers, also where it spans less than a decade."""
    ticks = log_ticks(low, high)
    extent = pad * math.log10(high / low) if high > low else 0.05
    update(
        type="log",
        range=[math.log10(low) - extent, math.log10(high) + extent],
        tickvals=ticks,
        ticktext=[_tick(t) for t in ticks],
        title_text=title,
    )


def log_ticks(low: float, high: float) -> list[float]:
    """Three to nine round values in [low, high]: powers of ten, else 1-2-5, else an even step."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    slack = 1 + 1e-9
    for mantissas in ((1,), (1, 3), (1, 2, 5)):
        ticks = [float(f"{m}e{k}") for k in decades for m in mantissas]
        ticks = [t for t in ticks if low / slack <= t <= high * slack]
        if 3 <= len(ticks) <= 9:
            return ticks
    if high <= low:
        return [low]
    rough = (high - low) / 4
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough)
    first = math.ceil(low / step)
    ticks = [float(f"{i * step:.12g}") for i in range(first, int(high / step) + 1)]
    return ticks or [low, high]


def _tick(value: float) -> str:
    return f"{value:.6g}" if 0.01 <= value < 1e4 else words.scientific(value, 1 if _round(value) else 2)


def _round(value: float) -> bool:
    mantissa = value / 10 ** math.floor(math.log10(value))
    return math.isclose(mantissa, round(mantissa), rel_tol=1e-6)
