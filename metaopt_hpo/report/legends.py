"""What the report's figures share: a legend of traces without points, a note, and a user's text made safe.

Colours of text, grid and background come from the page's style sheet, so that one figure serves the light
page, the dark page and print. Text that a user wrote reaches Plotly only through `plain`, for Plotly reads some
HTML in texts.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from metaopt_hpo.report import palette
from metaopt_hpo.report.behind import LEGEND
from metaopt_hpo.report.palette import Look


@dataclass(frozen=True)
class LegendEntry:
    """One line of a figure's legend: `line` and `marker` say what is drawn."""

    text: str
    look: Look
    line: bool = True
    marker: bool = False
    band: bool = False
    group: str = ""
    """Name of the traces that a click on the entry hides; none where empty."""


@dataclass(frozen=True)
class Figure:
    """A Plotly figure, its legend inside, and what explains it."""

    plot: go.Figure
    note: str = ""
    """What a reader must know to read it right; a sentence."""


def plain(text: str, limit: int = 80) -> str:
    """A user's text for Plotly: its markup escaped, its length bounded."""
    text = " ".join(str(text).split())
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return html.escape(short, quote=True)


def with_legend(plot: go.Figure, entries: Sequence[LegendEntry]) -> go.Figure:
    """Each entry as a trace without points; a click on one hides the traces of its group."""
    grouped = {e.group for e in entries if e.group}
    for trace in plot.data:
        trace.showlegend = False
        if trace.name in grouped:
            trace.legendgroup = trace.name
    for e in entries:
        symbol = "square" if e.band else e.look.symbol
        plot.add_scatter(
            x=[None], y=[None], mode="+".join(["lines"] * e.line + ["markers"] * (e.marker or e.band)) or "markers",
            line={"width": 2.2, "color": e.look.colour, "dash": e.look.dash},
            marker={"symbol": symbol, "size": 11 if e.band else 8,
                    "line": {"width": int(e.band), "color": e.look.colour},
                    "color": palette.faded(e.look.colour, 0.35 if e.band else 1)},
            name=e.text, legendgroup=e.group or e.text, showlegend=True, hoverinfo="skip", meta=LEGEND,
        )  # fmt: skip
    plot.update_layout(showlegend=bool(entries))
    return plot
