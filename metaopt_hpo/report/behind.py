"""The numbers behind a figure: what its traces hold, as rows of a table and as a CSV file inside the page."""

from __future__ import annotations

import base64
import csv
import html
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import plotly.graph_objects as go

LEGEND = "legend"
"""`meta` of the traces that draw nothing but their entry in the legend."""

SHOWN = 40
"""Rows that a page shows; the file has them all."""


@dataclass(frozen=True)
class Numbers:
    """Rows of a figure's points: series, part of the series, x and y in the axes' words."""

    head: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]

    def csv(self) -> str:
        """All rows at full precision; a missing number is an empty cell."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.head)
        writer.writerows([_cell(v) for v in row] for row in self.rows)
        return out.getvalue()

    def href(self) -> str:
        """The CSV as an address that needs no network and no script."""
        text = self.csv()
        plain, packed = quote(text), base64.b64encode(text.encode()).decode()
        if len(plain) <= len(packed):
            return f"data:text/csv;charset=utf-8,{plain}"
        return f"data:text/csv;charset=utf-8;base64,{packed}"

    def shown(self) -> list[list[str]]:
        """The first rows, as a person reads them."""
        return [[v if isinstance(v, str) else f"{v:.5g}" for v in row] for row in self.rows[:SHOWN]]


def behind(plot: go.Figure) -> Numbers:
    """The points of a figure, trace after trace; error bars become columns `low` and `high`."""
    rows: list[tuple[str | float, ...]] = []
    bars = False
    for trace in plot.data:
        if trace.meta == LEGEND or trace.x is None or trace.y is None or getattr(trace, "mode", "") == "text":
            continue
        error = getattr(trace, "error_y", None)
        up = list(error.array) if error is not None and error.array is not None else []
        down = list(error.arrayminus) if error is not None and error.arrayminus is not None else up
        bars = bars or bool(up)
        series = _text(trace.name or "")
        part = _text(trace.meta) if isinstance(trace.meta, str) else ""
        for i, (x, y) in enumerate(zip(_values(trace.x), _values(trace.y), strict=True)):
            if (x, y) == (None, None):
                continue
            low, high = (y - down[i], y + up[i]) if up and isinstance(y, float) else (math.nan, math.nan)
            rows.append((series, part, *(math.nan if v is None else v for v in (x, y)), low, high))
    head = ("series", "part", _title(plot.layout.xaxis, "x"), _title(plot.layout.yaxis, "y"), "low", "high")
    keep = [i for i in range(6) if (i < 4 or bars) and (i != 1 or any(r[1] for r in rows))]
    return Numbers(tuple(head[i] for i in keep), tuple(tuple(r[i] for i in keep) for r in rows))


def _values(values: Iterable[Any]) -> list[float | str | None]:
    return [v if v is None else _text(v) if isinstance(v, str) else float(v) for v in values]


def _title(axis: Any, otherwise: str) -> str:
    title = axis.title.text if axis.title is not None else None
    return _text(title) if title else otherwise


def _text(markup: str) -> str:
    """Plotly's text as plain text."""
    return html.unescape(markup.replace("<br>", " "))


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        # a spreadsheet must not take a name for a formula
        return f"'{value}" if value[:1] in ("=", "+", "-", "@") else value
    return repr(value) if math.isfinite(value) else ""
