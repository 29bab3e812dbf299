"""A plan's page, by the report's template: its first line is the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from metaopt_hpo.atomic import write_text
from metaopt_hpo.plan import decide
from metaopt_hpo.plan.band import LEAST, predicted_end
from metaopt_hpo.plan.estimate import Z90
from metaopt_hpo.plan.status import Status, decisions, status
from metaopt_hpo.plan.status_words import cost_words, pilot_rows
from metaopt_hpo.plan.store import STORE_FILE
from metaopt_hpo.plan.words import decided
from metaopt_hpo.report import sections
from metaopt_hpo.report.axes import empty_figure, log_axis
from metaopt_hpo.report.palette import LAW, of_method, of_rank
from metaopt_hpo.report.words import count

PAGE_FILE = "page.html"
SOURCES = (
    sections.Source("plan.toml: the plan", "plan.toml"),
    sections.Source(f"{STORE_FILE}: every run, for optuna-dashboard sqlite:///{STORE_FILE}", STORE_FILE),
    sections.METAOPTIMIZE,
)
BAND = "rgba(181, 82, 159, 0.18)"


def write_page(folder: Path, more: Sequence[str] = (), *, first: str = "") -> Path:
    """Write a plan's page into its folder, whole or not at all.

    Args:
        folder: the plan's.
        more: further sections, from `report.sections.section`.
        first: what the page says before its own answer.
    """
    now = status(folder)
    to = folder / PAGE_FILE
    write_text(to, render(now, more, first=first))
    return to


def render(now: Status, more: Sequence[str] = (), *, first: str = "") -> str:
    """The page."""
    t = now.plan.target
    parts = [sections.section("Where it stands", *_standing(now))]
    if now.folder.pilots:
        parts.append(
            sections.section(
                "The law so far",
                sections.figure(
                    rates(now),
                    "rates",
                    alt="Learning rate against size",
                    summary="Learning rates of the pilots, and the law at the target's number of tokens with its 90 % "
                    f"interval: lr {now.rate.value:.3g} at {count(t.size)} parameters.",
                ),
            )
        )
        parts.append(
            sections.section(
                "Losses",
                sections.figure(
                    losses(now),
                    "losses",
                    alt="Loss against tokens of every run",
                    summary="Held-out loss of every run; runs on a schedule are dotted. The bar at the target's number "
                    "of tokens is the final loss expected of it (90 % interval), shown from three pilots on.",
                ),
            )
        )
    rows = [
        (
            d.number,
            decided(d.what),
            d.pilot or "–",
            d.reason,
            "–" if r is None else f"{r.state}, {r.loss:.4f}",
        )
        for d, r in decisions(now)
    ]
    parts.append(
        sections.section(
            "What was decided, and why",
            sections.table(
                ("number", "decision", "pilot", "reason", "outcome"), rows, numbers_from=5, stack=True
            ),
        )
    )
    parts.append(
        sections.section(
            "Pilots",
            sections.table(
                ("pilot", "parameters", "tokens", "lr by", "lr", "state", "loss", "of the target's cost"),
                list(pilot_rows(now)),
                label="Pilots",
                stack=True,
            ),
        )
    )
    parts += more
    title = f"Plan for {count(t.size)} parameters on {count(t.tokens)} tokens"
    return sections.page(
        parts,
        title=title,
        answer=first or now.answer,
        kicker=f"Workload: {now.plan.workload[:80]}",
        sources=SOURCES,
    )


def _standing(now: Status) -> list[str]:
    out = [sections.words(f"{now.state[:1].upper()}{now.state[1:]}; {cost_words(now)}.")]
    for run in now.running:
        band = "" if run.band is None else f"; expected there: {run.band.low:.4g} to {run.band.high:.4g}"
        loss = f"loss {run.loss:.4g}" if math.isfinite(run.loss) else "no loss yet"
        out.append(sections.words(f"{run.name}: {run.share:.0%} of its tokens, {loss}{band}."))
        if run.remark:
            out.append(sections.words(f"{run.remark}."))
    return out


def rates(now: Status) -> go.Figure:
    """ln lr against size: found rates, optima of schedule runs, the law and its interval at the target's tokens."""
    plot = empty_figure()
    law = decide.estimate(now.plan, now.folder.pilots)
    t = now.plan.target
    least = min([o.size for o in law.seen] or [t.size / 100])
    grid = np.geomspace(least, t.size, 40)
    at = [law.at(float(s), t.tokens) for s in grid]
    both = [*grid, *grid[::-1]]
    plot.add_scatter(
        x=both, y=[*(r.high for r in at), *(r.low for r in reversed(at))], fill="toself", fillcolor=BAND,
        line={"width": 1, "color": LAW.colour}, hoverinfo="skip", name="90 %", showlegend=False, mode="lines",
    )  # fmt: skip
    plot.add_scatter(
        x=list(grid), y=[r.value for r in at], mode="lines", name="law at the target's tokens",
        line={"color": LAW.colour, "dash": LAW.dash},
    )  # fmt: skip
    for found, name, look in (
        (True, "found by MetaOptimize", of_method("metaoptimize")),
        (False, "best of schedule runs", of_method("grid")),
    ):
        own = [o for o in law.seen if o.found == found]
        if own:
            plot.add_scatter(
                x=[o.size for o in own], y=[math.exp(o.x) for o in own], mode="markers", name=name,
                marker={"color": look.colour, "symbol": look.symbol, "size": 9},
            )  # fmt: skip
    ys = [math.exp(o.x) for o in law.seen] + [r.low for r in at] + [r.high for r in at]
    log_axis(plot.update_xaxes, least, t.size, "Parameters")
    log_axis(plot.update_yaxes, min(ys), max(ys), "Learning rate")
    return plot


def losses(now: Status) -> go.Figure:
    """Loss against tokens of every run, and where the target's is expected to end."""
    plot = empty_figure()
    runs = [r for r in now.folder.records if r.curve is not None]
    sizes = sorted({r.size for r in runs})
    low, high, seen = math.inf, 0.0, set()
    for r in runs:
        assert r.curve is not None
        look = of_rank(sizes.index(r.size), len(sizes))
        points = [
            (t, v) for t, v in zip(r.curve.tokens, r.curve.loss, strict=True) if t > 0 and math.isfinite(v)
        ]
        if not points:
            continue
        low, high = min(low, points[0][0]), max(high, points[-1][0])
        plot.add_scatter(
            x=[t for t, _ in points], y=[v for _, v in points], mode="lines", name=f"{count(r.size)} parameters",
            legendgroup=str(r.size), showlegend=r.size not in seen,
            line={"color": look.colour, "dash": "solid" if r.self_tuning else "dot"},
        )  # fmt: skip
        seen.add(r.size)
    t = now.plan.target
    ends = [r for r in now.folder.pilots if r.state == "complete" and r.loss > 0]
    if len(ends) >= LEAST:
        centre, sd = predicted_end(ends, t.size, t.tokens)
        plot.add_scatter(
            x=[t.tokens] * 3, y=[math.exp(centre + k * Z90 * sd) for k in (-1, 0, 1)], mode="lines+markers",
            name="target, expected", line={"color": LAW.colour, "width": 3},
        )  # fmt: skip
        high = max(high, t.tokens)
    log_axis(plot.update_xaxes, low if low < high else high / 10, high, "Tokens")
    plot.update_yaxes(title="Held-out loss, nats per token")
    return plot
