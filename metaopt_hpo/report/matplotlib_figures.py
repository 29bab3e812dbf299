"""A figure of ours in matplotlib: the same points, colours, dashes and axes that Plotly is given."""

from __future__ import annotations

import html
import math
from typing import Any

import plotly.graph_objects as go

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.report.behind import LEGEND

DASHES = {
    "solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3)), "longdashdot": (0, (8, 3, 2, 3)),
}  # fmt: skip
MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v", "triangle-left": "<",
    "triangle-right": ">", "star": "*", "x": "X", "x-thin": "x", "cross": "P", "pentagon": "p", "hexagon": "h",
    "hexagon2": "H",
}  # fmt: skip


def to_matplotlib(plot: go.Figure, axes: Any = None) -> Any:
    """Draw a figure of ours with matplotlib.

    Args:
        plot: made by this package: scatters, bars and straight lines on linear or logarithmic axes.
        axes: matplotlib Axes to draw on; new ones where none are given.

    Returns:
        The Axes.

    Raises:
        MetaOptError: matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MetaOptError("this backend needs matplotlib; run: pip install matplotlib") from error
    if axes is None:
        _, axes = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
    for which in ("x", "y"):
        _scale(axes, which, getattr(plot.layout, f"{which}axis"))
    bars = [t for t in plot.data if t.type == "bar"]
    for i, trace in enumerate(bars):
        _bar(axes, trace, i, len(bars), stacked=plot.layout.barmode == "stack")
    for i, trace in enumerate(plot.data):
        if trace.type == "scatter":
            _scatter(axes, trace, 2 + i / len(plot.data))
    for said in plot.layout.annotations:
        if (said.xref, said.yref) == ("paper", "paper"):
            axes.text(
                said.x,
                said.y,
                _plain(said.text),
                transform=axes.transAxes,
                ha="center",
                va="center",
                wrap=True,
            )
    if plot.layout.title.text:
        axes.set_title(_plain(plot.layout.title.text))
    for shape in plot.layout.shapes:
        line = {"color": shape.line.color, "linewidth": shape.line.width or 1}
        line["linestyle"] = DASHES[shape.line.dash or "solid"]
        if shape.y0 == shape.y1:
            axes.axhline(float(shape.y0), **line)
        else:
            axes.axvline(float(shape.x0), **line)
    handles, labels = axes.get_legend_handles_labels()
    kept = dict(zip(labels, handles, strict=True))
    if kept:
        axes.legend(kept.values(), kept.keys(), fontsize="small", frameon=False)
    return axes


def _scale(axes: Any, which: str, axis: Any) -> None:
    log = axis.type == "log"
    if log:
        getattr(axes, f"set_{which}scale")("log")
    if axis.title.text:
        getattr(axes, f"set_{which}label")(_plain(axis.title.text))
    if axis.range is not None:
        low, high = (float(v) for v in axis.range)
        getattr(axes, f"set_{which}lim")(*((10**low, 10**high) if log else (low, high)))
    if axis.tickvals is not None:
        texts = [_plain(str(t)) for t in (axis.ticktext if axis.ticktext is not None else axis.tickvals)]
        getattr(axes, f"set_{which}ticks")([float(v) for v in axis.tickvals], texts)
        if log:
            getattr(axes, f"{which}axis").minorticks_off()
    axes.grid(True, alpha=0.3)


def _scatter(axes: Any, trace: Any, order: float) -> None:
    mode = trace.mode or "lines"
    shown = trace.showlegend is not False and bool(trace.name)
    label = _plain(trace.name) if shown else "_nolegend_"
    x, y = _numbers(trace.x), _numbers(trace.y)
    colour = trace.line.color or trace.marker.color or None
    if trace.fill == "toself":
        axes.fill(x, y, color=_band(trace.fillcolor), linewidth=0, label=label, zorder=order)
        return
    if mode == "text" or (trace.meta != LEGEND and not x):
        return
    draw = {
        "color": _band(colour) if isinstance(colour, str) else None,
        "alpha": trace.opacity or 1.0,
        "label": label,
        "zorder": order,  # matplotlib draws lines of one order by kind, not by turn
    }
    if trace.line.shape == "hv":
        draw["drawstyle"] = "steps-post"
    draw["linestyle"] = DASHES.get(trace.line.dash or "solid", "-") if "lines" in mode else "none"
    draw["linewidth"] = trace.line.width if trace.line.width is not None else 1.6
    size = trace.marker.size
    if "markers" in mode and isinstance(size, int | float):
        symbol = str(trace.marker.symbol or "circle")
        draw["marker"] = MARKERS.get(symbol.removesuffix("-open"), "o")
        draw["markersize"] = 0.7 * size
        if symbol.endswith("-open"):
            draw["markerfacecolor"] = "none"
    error = trace.error_y
    if error is not None and error.array is not None:
        down = error.arrayminus if error.arrayminus is not None else error.array
        draw.pop("drawstyle", None)
        axes.errorbar(x, y, yerr=[list(down), list(error.array)], **draw)
    else:
        axes.plot(x, y, **draw)
    if "markers" in mode and size is not None and not isinstance(size, int | float) and x:
        # one mark, where the line ends
        symbol = MARKERS.get(str(trace.marker.symbol or "circle"), "o")
        end = {k: draw[k] for k in ("color", "alpha", "zorder")}
        axes.plot(x[-1:], y[-1:], symbol, **end, markersize=5, label="_nolegend_")


def _bar(axes: Any, trace: Any, i: int, count: int, *, stacked: bool) -> None:
    flat = trace.orientation == "h"
    names, values = (trace.y, trace.x) if flat else (trace.x, trace.y)
    colours = trace.marker.color
    colours = [_band(c) for c in colours] if isinstance(colours, tuple | list) else _band(colours)
    at = list(range(len(names)))
    width = 0.6 if stacked or count == 1 else 0.8 / count
    where = at if stacked or count == 1 else [a + (i - (count - 1) / 2) * width for a in at]
    base = getattr(axes, "_metaopt_base", [0.0] * len(at)) if stacked else None
    numbers = [float(v) for v in values]
    label = _plain(trace.name) if trace.name else "_nolegend_"
    if flat:
        axes.barh(where, numbers, height=width, left=base, color=colours, label=label)
        axes.set_yticks(at, [_plain(str(n)) for n in names])
    else:
        axes.bar(where, numbers, width=width, bottom=base, color=colours, label=label)
        axes.set_xticks(at, [_plain(str(n)) for n in names])
    if stacked and base is not None:
        axes._metaopt_base = [b + v for b, v in zip(base, numbers, strict=True)]


def _numbers(values: Any) -> list[float | str]:
    found: list[float | str] = []
    for v in values if values is not None else ():
        if isinstance(v, str):
            found.append(_plain(v))
        else:
            found.append(math.nan if v is None else float(v))
    return found


def _band(colour: Any) -> Any:
    """rgba(r, g, b, a) as matplotlib takes it."""
    if isinstance(colour, str) and colour.startswith("rgba("):
        r, g, b, a = (float(v) for v in colour[5:-1].split(","))
        return r / 255, g / 255, b / 255, a
    return colour


def _plain(text: str) -> str:
    return html.unescape(text.replace("<br>", "\n"))
