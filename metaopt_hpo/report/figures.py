"""The report's figures: pure functions from a view (plain data) to a Plotly figure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from metaopt_hpo.report import palette, words
from metaopt_hpo.report.axes import empty_figure, log_axis, run_axis
from metaopt_hpo.report.cost_views import SearchCost
from metaopt_hpo.report.law_views import LossAtRate, OptimalRate
from metaopt_hpo.report.legends import Figure, LegendEntry, plain, with_legend
from metaopt_hpo.report.palette import Look
from metaopt_hpo.report.search_views import LossAgainstCompute, RateTrajectories

HEADROOM = 3.0
"""Best-so-far losses farther above the lowest than this multiple of what separates the methods at the end are
cut off: the start of a search would hide its end."""


def loss_against_compute(view: LossAgainstCompute) -> Figure:
    """Step lines: median over seeds thick, each seed thin; x in full runs, FLOPs in the second line of ticks."""
    plot = empty_figure()
    legend = []
    for line in view.lines:
        look = palette.of_method(line.method)
        for t in line.seeds:
            plot.add_scatter(
                x=[c / view.run_cost for c in t.cost], y=_finite(t.best), mode="lines",
                line={"shape": "hv", "width": 0.8, "color": look.colour, "dash": look.dash},
                name=line.title, meta=f"seed {t.seed}",
                hovertemplate=f"{line.title}, seed {t.seed}<br>%{{x:.3g}} runs: %{{y:.5g}}<extra></extra>",
            )  # fmt: skip
        if len(line.seeds) > 1:
            plot.add_scatter(
                x=[c / view.run_cost for c in line.cost], y=_finite(line.median), mode="lines+markers",
                line={"shape": "hv", "width": 2.6, "color": look.colour, "dash": look.dash},
                marker={"symbol": look.symbol, "size": 7, "color": look.colour},
                name=line.title, meta="median",
                hovertemplate=f"{line.title}, median<br>%{{x:.3g}} runs: %{{y:.5g}}<extra></extra>",
            )  # fmt: skip
        else:
            plot.data[-1].update(mode="lines+markers", line_width=2.6)
            plot.data[-1].update(marker={"symbol": look.symbol, "size": 7, "color": look.colour})
        legend.append(LegendEntry(line.title, look, marker=True, group=line.title))
    plot.add_hline(y=view.reference_best, line={"width": 1.2, "dash": "dot", "color": palette.NEUTRAL.colour})
    legend.append(LegendEntry(f"best of {view.reference_title} (median)", palette.NEUTRAL))
    end = max(line.cost[-1] for line in view.lines) / view.run_cost
    run_axis(plot, end, view.run_cost)
    values = [v for line in view.lines for v in line.median if math.isfinite(v)]
    values += [v for line in view.lines for t in line.seeds for v in t.best if math.isfinite(v)]
    low, high = min(values), max(values)
    ends = max(t.best[-1] for line in view.lines for t in line.seeds) - low
    top = min(high, low + max(HEADROOM * ends, 0.03 * abs(low)))
    pad = 0.06 * (top - low) or 0.01 * abs(top) or 0.01
    plot.update_yaxes(title_text="Best held-out loss so far", range=[low - pad, top + pad])
    note = (
        f"Losses above {words.loss(top)} are cut off: lines that start higher enter from the top."
        if top < high
        else ""
    )
    return Figure(with_legend(plot, legend), note)


def rate_trajectories(view: RateTrajectories) -> Figure:
    """Step size against tokens, logarithmic in the step size; one thin line a seed."""
    plot = empty_figure()
    legend: dict[str, LegendEntry] = {}
    for line in view.lines:
        look = palette.of_method(line.method)
        plot.add_scatter(
            x=list(line.tokens), y=list(line.step_size), mode="lines",
            line={"width": 1.8, "color": look.colour, "dash": look.dash}, name=line.title, meta=plain(line.trial),
            hovertemplate=f"{line.title}, seed {line.seed}<br>%{{x:.3s}} tokens: %{{y:.2e}}<extra></extra>",
        )  # fmt: skip
        legend[line.method] = LegendEntry(line.title, look, group=line.title)
    values = [v for line in view.lines for v in line.step_size]
    # a cooldown ends at almost nothing; three decades below the top are enough to see it go
    log_axis(plot.update_yaxes, max(min(values), max(values) * 1e-3), max(values), "Step size")
    plot.update_xaxes(title_text="Tokens seen", rangemode="tozero", exponentformat="B")
    return Figure(with_legend(plot, list(legend.values())))


def loss_at_rate(view: LossAtRate) -> Figure:
    """Points are trials, lines the fitted law, stars its optimum; crosses along the top diverged or failed."""
    plot = empty_figure()
    legend = []
    points = [v for c in view.curves for v in c.loss]
    points += [c.optimum[1] for c in view.curves if c.optimum]
    low, high = min(points), max(points)
    top = math.exp(math.log(high) + 0.08 * math.log(high / low)) if high > low else high * 1.02
    for rank, c in enumerate(view.curves):
        look = palette.of_rank(rank, len(view.curves))
        name = words.count(c.size)
        if c.law_lr:
            inside = [(x, y) for x, y in zip(c.law_lr, c.law_loss, strict=True) if y <= top]
            plot.add_scatter(
                x=[x for x, _ in inside], y=[y for _, y in inside], mode="lines", name=name, meta="law",
                line={"width": 1.6, "color": look.colour, "dash": "dash" if c.is_target else "solid"},
                hovertemplate=f"law at {name}<br>lr %{{x:.2e}}: %{{y:.5g}}<extra></extra>",
            )  # fmt: skip
        plot.add_scatter(
            x=list(c.lr), y=list(c.loss), mode="markers", name=name, meta="trials",
            customdata=[plain(text) for text in c.label],
            marker={"symbol": look.symbol, "size": 7, "color": look.colour},
            hovertemplate=f"{name}, %{{customdata}}<br>lr %{{x:.2e}}: %{{y:.5g}}<extra></extra>",
        )  # fmt: skip
        if c.failed_lr:
            plot.add_scatter(
                x=list(c.failed_lr), y=[top] * len(c.failed_lr), mode="markers", name=name, meta="failed",
                marker={"symbol": "x-thin", "size": 8, "line": {"width": 2, "color": look.colour}},
                hovertemplate=f"{name}: diverged or failed at lr %{{x:.2e}}<extra></extra>",
            )  # fmt: skip
        if c.optimum:
            plot.add_scatter(
                x=[c.optimum[0]], y=[c.optimum[1]], mode="markers", name=name, meta="optimum",
                marker={
                    "symbol": "star", "size": 15, "color": look.colour, "line": {"width": 1.2, "color": "#fff"},
                },
                hovertemplate=f"law's optimum at {name}<br>lr %{{x:.2e}}: %{{y:.5g}}<extra></extra>",
            )  # fmt: skip
        if c.lr or c.law_lr:
            legend.append(
                LegendEntry(f"{name}{' (target)' if c.is_target else ''}", look, line=False, marker=True)
            )
    if any(c.optimum for c in view.curves):
        legend.append(LegendEntry("law (dashed at the target)", Look("#808080", "solid", "circle")))
        legend.append(LegendEntry("law's optimum", Look("#808080", "solid", "star"), line=False, marker=True))
    rates = [v for c in view.curves for v in (*c.lr, *c.failed_lr)]
    log_axis(plot.update_xaxes, min(rates), max(rates), "Learning rate (peak)", pad=0.06)
    log_axis(plot.update_yaxes, low, top, "Final held-out loss", pad=0.05)
    return Figure(with_legend(plot, legend))


def optimal_rate(view: OptimalRate) -> Figure:
    """Band and line: the law; open circles: the smaller models' own optima; markers at the target: what was found."""
    plot = empty_figure()
    legend = []
    law = palette.LAW
    if view.size:
        plot.add_scatter(
            x=[*view.size, *view.size[::-1]], y=[*view.high, *view.low[::-1]], mode="lines", fill="toself",
            fillcolor=palette.faded(law.colour, 0.18), line={"width": 1, "color": law.colour}, hoverinfo="skip",
            meta="band",
        )  # fmt: skip
        plot.add_scatter(
            x=list(view.size), y=list(view.value), mode="lines", line={"width": 2.4, "color": law.colour}, meta="law",
            customdata=list(zip(view.low, view.high, strict=True)),
            hovertemplate=(
                "law at %{x:.3s}<br>lr %{y:.2e} (%{customdata[0]:.1e} to %{customdata[1]:.1e})<extra></extra>"
            ),
        )  # fmt: skip
        legend.append(LegendEntry("law", Look(law.colour, "solid", "circle")))
        legend.append(LegendEntry(f"its {view.level:.0%} interval", law, line=False, band=True))
    if view.pilots:
        own = Look("#808080", "solid", "circle-open")
        plot.add_scatter(
            x=[s for s, _, _ in view.pilots], y=[lr for _, _, lr in view.pilots], mode="markers", meta="pilots",
            marker={"symbol": "circle-open", "size": 9, "color": own.colour, "line": {"width": 2}},
            customdata=[seed for _, seed, _ in view.pilots],
            hovertemplate="best smaller model, seed %{customdata}<br>%{x:.3s}: lr %{y:.2e}<extra></extra>",
        )  # fmt: skip
        legend.append(LegendEntry("best trial of each smaller model and seed", own, line=False, marker=True))
    for found in view.found:
        look = palette.of_method(found.method)
        if found.lr:
            plot.add_scatter(
                x=[view.target] * len(found.lr), y=list(found.lr), mode="markers", meta=f"found by {found.method}",
                marker={"symbol": look.symbol, "size": 9, "color": look.colour},
                hovertemplate=f"{found.title} at the target<br>lr %{{y:.2e}}<extra></extra>",
            )  # fmt: skip
            legend.append(LegendEntry(f"found by {found.title}", look, line=False, marker=True))
    if view.prediction is not None:
        lr = view.prediction.lr
        plot.add_scatter(
            x=[view.target], y=[lr.value], mode="markers", meta="prediction",
            marker={"symbol": "star", "size": 15, "color": law.colour, "line": {"width": 1.2, "color": "#fff"}},
            error_y={
                "type": "data", "symmetric": False, "array": [lr.high - lr.value], "arrayminus": [lr.value - lr.low],
                "color": law.colour, "thickness": 2, "width": 6,
            },
            hovertemplate=(
                f"predicted at the target<br>lr {lr.value:.2e} ({lr.low:.1e} to {lr.high:.1e})<extra></extra>"
            ),
        )  # fmt: skip
        legend.append(
            LegendEntry("predicted at the target", Look(law.colour, "solid", "star"), line=False, marker=True)
        )
    sizes = sorted({*(s for s, _, _ in view.pilots), view.target})
    text = [words.count(s) for s in sizes]
    low, high = (view.size[0], view.size[-1]) if view.size else (sizes[0] / 1.2, sizes[-1] * 1.2)
    plot.update_xaxes(
        type="log", range=[math.log10(low), math.log10(high)], tickvals=sizes, ticktext=text,
        title_text="Model size (parameters)",
    )  # fmt: skip
    rates = [
        *view.low,
        *view.high,
        *(lr for _, _, lr in view.pilots),
        *(lr for f in view.found for lr in f.lr),
    ]
    log_axis(plot.update_yaxes, min(rates), max(rates), "Best learning rate", pad=0.06)
    return Figure(with_legend(plot, legend))


def search_cost(view: SearchCost) -> Figure:
    """Stacked bars in full runs: what the smaller models cost, then what was spent at the target size."""
    plot = empty_figure()
    rows = view.rows[::-1]
    labels = [_wrapped(row.label) for row in rows]
    parts: list[tuple[str, list[float]]] = [
        ("at the target size", [r.target_cost / view.run_cost for r in rows]),
    ]
    if any(r.pilot_cost > 0 for r in rows):
        parts.insert(0, ("smaller models", [r.pilot_cost / view.run_cost for r in rows]))
    for name, values in parts:
        small = name == "smaller models"
        plot.add_bar(
            y=labels, x=values, orientation="h", name=name, meta=name, width=0.6,
            marker={
                "color": [palette.faded(palette.of_method(r.name).colour, 0.45 if small else 1) for r in rows],
                "line": {"width": 1, "color": [palette.of_method(r.name).colour for r in rows]},
            },
            hovertemplate=f"{name}: %{{x:.3g}} runs<extra></extra>",
        )  # fmt: skip
    plot.add_scatter(
        x=[r.cost / view.run_cost for r in rows], y=labels, mode="text", textposition="middle right",
        text=[f" {r.cost / view.run_cost:.3g}" for r in rows], hoverinfo="skip", cliponaxis=False, meta="total",
    )  # fmt: skip
    plot.update_layout(barmode="stack", bargap=0.35, hovermode="closest")
    plot.update_yaxes(automargin=True, showgrid=False, ticks="", fixedrange=True)
    end = max(r.cost for r in rows) / view.run_cost
    run_axis(plot, end * 1.18, view.run_cost)
    legend = [
        LegendEntry("spent on smaller models", Look("#808080", "solid", "square"), line=False, band=True),
        LegendEntry("spent at the target size", Look("#808080", "solid", "square"), line=False, marker=True),
    ]
    return Figure(with_legend(plot, legend if len(parts) > 1 else []))


def _finite(values: Sequence[float]) -> list[float | None]:
    return [v if math.isfinite(v) else None for v in values]


def _wrapped(text: str, width: int = 18) -> str:
    """Lines of at most `width` characters where words allow: bar labels leave room for bars on a phone."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(lines)
