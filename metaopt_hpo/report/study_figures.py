"""Figures of a search's trials, from `study_views`: its scaling law, its step sizes, its pruning decisions.

Sizes, tokens and step sizes are on log axes.
"""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from metaopt_hpo.report.palette import LAW, NEUTRAL, SERIES, STATES, faded
from metaopt_hpo.report.study_views import PruningInfo, ScalingLawInfo, TrajectoriesInfo

FAINT = 0.4
"""Opacity of finished runs where pruned ones are to be seen among them."""


def scaling_law(info: ScalingLawInfo) -> go.Figure:
    """Learning rate against size: trials, the best of each size, the law's optimum and interval."""
    figure = _empty("Learning rate against size", "size (parameters)", "learning rate", log_y=True)
    if info.sizes:
        band = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        around = {"x": [*info.sizes, *info.sizes[::-1]], "y": [*info.high, *info.low[::-1]]}
        figure.add_trace(go.Scatter(**around, fill="toself", fillcolor=faded(LAW.colour, 0.18), **band))
        figure.add_trace(
            go.Scatter(x=info.sizes, y=info.lr, mode="lines", name="law", line={"color": LAW.colour})
        )
    for best, name, symbol in ((False, "trials", "circle-open"), (True, "best of a size", "diamond")):
        points = [p for p in info.points if p.best is best]
        if points:
            figure.add_trace(
                go.Scatter(
                    x=[p.size for p in points],
                    y=[p.lr for p in points],
                    mode="markers",
                    name=name,
                    marker={"symbol": symbol, "size": 9, "color": SERIES[1] if best else NEUTRAL.colour},
                    text=[f"trial {p.trial}: loss {p.loss:.4g}" for p in points],
                    hoverinfo="text",
                )
            )
    if not info.sizes:
        _say(figure, info.message)
    return figure


def trajectories(info: TrajectoriesInfo) -> go.Figure:
    """Step size over tokens, one line a trial, one colour a strategy."""
    figure = _empty("Step sizes during training", "tokens", "step size", log_y=True)
    strategies = sorted({t.strategy for t in info.trajectories})
    for t in info.trajectories:
        first = t is next(o for o in info.trajectories if o.strategy == t.strategy)
        figure.add_trace(
            go.Scatter(
                x=t.tokens,
                y=t.step_size,
                mode="lines",
                name=t.strategy,
                legendgroup=t.strategy,
                showlegend=first,
                line={"color": SERIES[strategies.index(t.strategy) % len(SERIES)], "width": 1.5},
                text=f"trial {t.trial}, size {t.size:.3g}: loss {t.loss:.4g}",
                hoverinfo="text",
            )
        )
    if not info.trajectories:
        _say(figure, "no trial recorded its step sizes; train with TrialRun")
    return figure


def pruning(info: PruningInfo) -> go.Figure:
    """Loss over tokens: finished trials, and stopped ones up to where they were stopped, with the reason."""
    figure = _empty(
        f"Pruned against finished: {info.saved:.0%} of the planned FLOPs not spent", "tokens", "loss"
    )
    shown: set[str] = set()
    # finished runs are many: they are drawn first and faint, so that what was pruned can be seen among them
    for c in sorted(info.curves, key=lambda c: c.state != "complete"):
        look = STATES.get(c.state, NEUTRAL)
        figure.add_trace(
            go.Scatter(
                x=c.tokens,
                y=c.loss,
                mode="lines+markers",
                name=c.state,
                legendgroup=c.state,
                showlegend=c.state not in shown,
                opacity=FAINT if c.state == "complete" else 1.0,
                line={"color": look.colour, "dash": look.dash, "width": 1.2},
                # a mark where it ended, and nowhere else
                marker={"size": [0] * (len(c.tokens) - 1) + [8], "symbol": "x" if c.reason else "circle"},
                text=f"trial {c.trial}, size {c.size:.3g}" + (f": {c.reason}" if c.reason else ""),
                hoverinfo="text",
            )
        )
        shown.add(c.state)
    if not info.curves:
        _say(figure, "no trial reported between its start and its end")
    return figure


def note(law: ScalingLawInfo, pruning: PruningInfo) -> str:
    """The law and the savings in a few lines of Markdown."""
    lines = ["### metaopt-hpo"]
    if law.sizes:
        largest = max(p.size for p in law.points)
        i = min(range(len(law.sizes)), key=lambda k: abs(law.sizes[k] - largest))
        lines.append(
            f"At size {law.sizes[i]:.3g} the law puts the best learning rate at {law.lr[i]:.3g} "
            f"[{law.low[i]:.3g}, {law.high[i]:.3g}]."
        )
    else:
        lines.append(f"No law: {law.message}.")
    lines.append(f"Stopped trials left {pruning.saved:.0%} of the planned FLOPs unspent.")
    return "\n\n".join(lines)


def _empty(title: str, x: str, y: str, *, log_y: bool = False) -> go.Figure:
    axis: dict[str, Any] = {"type": "log", "exponentformat": "power"}
    figure = go.Figure()
    figure.update_layout(
        title=title, xaxis={"title": x, **axis}, yaxis={"title": y, **(axis if log_y else {})}
    )
    return figure


def _say(figure: go.Figure, message: str) -> None:
    figure.add_annotation(text=message, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
