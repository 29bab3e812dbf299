"""An attribution of a law's gap to its bound as figures, a section and a page; text that a user wrote is escaped.

What is drawn is whatever gives these values: the experiment stands above the report.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import plotly.graph_objects as go

from metaopt_hpo.report.axes import empty_figure
from metaopt_hpo.report.legends import plain
from metaopt_hpo.report.palette import NEUTRAL, of_rank
from metaopt_hpo.report.sections import BOUNDS, Source, figure, page, table
from metaopt_hpo.scaling.estimates import Estimate
from metaopt_hpo.theory.predicted import predicted_exponents

LEAST_GAP = 0.01
"""Least half-width of the axis of parts."""

TOTAL = "total"
PRACTICE = "practice"
"""Names of the sum of a gap's parts, and of the setting that is not the ideal one."""


class Paths(Protocol):
    """Exponents of the optimal lr in tokens along batch paths."""

    @property
    def exponents(self) -> Sequence[float]:
        """b of each path B ~ D^b."""
        ...

    @property
    def along(self) -> Mapping[tuple[str, str], Sequence[Estimate]]:
        """(world, setting) → the exponent on each path."""
        ...


@runtime_checkable
class Attributed(Protocol):
    """What a page says of an attribution."""

    @property
    def tier(self) -> int:
        """Of the experiment."""
        ...

    def parts(self) -> Mapping[str, Mapping[str, Estimate]]:
        """World → part of the gap → estimate; their sum, `TOTAL`, is the last."""
        ...

    def paths(self) -> Paths:
        """Exponents along batch paths."""
        ...

    def notes(self) -> list[str]:
        """What was run, and what of it cannot be used."""
        ...

    def rows(self) -> list[dict[str, str]]:
        """The signed table."""
        ...

    def protocol_rows(self) -> list[dict[str, str]]:
        """What practice's runs say on other grids."""
        ...

    def level_rows(self) -> list[dict[str, str]]:
        """Every level."""
        ...


def parts_figure(attribution: Attributed) -> go.Figure:
    """Signed parts of the gap with intervals, grouped by world: parts that cancel are visible as such."""
    plot = empty_figure()
    found = attribution.parts()
    for rank, (world, parts) in enumerate(found.items()):
        estimates = list(parts.values())
        plot.add_bar(
            x=list(parts),
            y=[e.value for e in estimates],
            error_y={
                "type": "data", "symmetric": False, "color": NEUTRAL.colour,
                "array": [e.high - e.value for e in estimates], "arrayminus": [e.value - e.low for e in estimates],
            },
            name=plain(world),
            marker={"color": of_rank(rank, len(found)).colour},
        )  # fmt: skip
    plot.update_layout(barmode="group")
    shown = [
        abs(e) for trace in plot.data for e in (*trace.y, *trace.error_y.array, *trace.error_y.arrayminus)
    ]
    plot.update_yaxes(title_text="Part of the gap", zeroline=True)
    if max(shown) < LEAST_GAP:  # rounding is no part of anything
        plot.update_yaxes(range=[-LEAST_GAP, LEAST_GAP])
    return plot


def path_figure(attribution: Attributed) -> go.Figure:
    """Exponent of the optimal lr in D along B ~ D^b, ideal and practice, against the bound."""
    plot = empty_figure()
    paths = attribution.paths()
    b = np.array(paths.exponents)
    plot.add_scatter(
        x=b, y=[predicted_exponents().along(v) for v in b], mode="lines", name="bound",
        line={"width": 3, "color": NEUTRAL.colour},
    )  # fmt: skip
    worlds = list(dict.fromkeys(world for world, _ in paths.along))
    for (world, setting), along in paths.along.items():
        colour = of_rank(worlds.index(world), len(worlds)).colour
        plot.add_scatter(
            x=b, y=[e.value for e in along], mode="lines+markers", name=f"{plain(world)}, {setting}",
            line={"dash": "solid" if setting == PRACTICE else "dot", "color": colour},
            error_y={
                "type": "data", "symmetric": False, "thickness": 1, "color": colour,
                "array": [e.high - e.value for e in along], "arrayminus": [e.value - e.low for e in along],
            },
        )  # fmt: skip
    plot.add_hline(y=0, line={"width": 1, "dash": "dot", "color": NEUTRAL.colour})
    plot.update_xaxes(title_text="b of the batch path B ~ D^b")
    plot.update_yaxes(title_text="Exponent of optimal lr in D")
    return plot


def attribution_section(attribution: Attributed) -> str:
    """`attribute` as an HTML section: the signed table, what cannot be used, and both figures."""
    rows = attribution.rows()
    parts = [_table(tuple(rows[0]), [tuple(r.values()) for r in rows])]
    parts.append("<ul>" + "".join(f"<li>{html.escape(n)}</li>" for n in attribution.notes()) + "</ul>")
    parts.append(
        _figure(
            parts_figure(attribution), "attribution-parts", "Parts of the gap with their intervals, by world"
        )
    )
    parts.append(
        _figure(
            path_figure(attribution),
            "attribution-paths",
            "Exponent of the optimal lr in tokens along batch paths, against the bound",
        )
    )
    protocol = attribution.protocol_rows()
    if protocol:
        parts.append("<p>What practice's runs say on other grids of learning rates, against its own:</p>")
        parts.append(_table(tuple(protocol[0]), [tuple(r.values()) for r in protocol]))
    levels = attribution.level_rows()
    detail = _table(tuple(levels[0]), [tuple(r.get(k, "") for k in levels[0]) for r in levels])
    parts.append(f"<details><summary>Every level</summary>{detail}</details>")
    intro = (
        "Gap between the exponent of the optimal learning rate in tokens and the bound's, attributed to its causes. "
        "The bound is the nonconvex one at fixed momentum, lr ~ B^0.5 D^-0.5 in each of its forms. "
        "Parts sum to the total exactly; intervals are 95 % hierarchical bootstraps."
    )
    title = f"<h2>Parts of the gap, tier {attribution.tier}</h2><p>{html.escape(intro)}</p>"
    return f'<section class="theory">{title}{"".join(parts)}</section>'


def attribution_page(attribution: Attributed) -> str:
    """`attribute` as a page of its own: about 5 MB, no network."""
    return page(
        [attribution_section(attribution)],
        title="Learning-rate laws against convergence bounds",
        answer=attribution_answer(attribution),
        kicker=f"Attribution, tier {attribution.tier}",
        sources=[BOUNDS, Source(f"Command: metaopt-hpo attribute --tier {attribution.tier}")],
    )


def attribution_answer(attribution: Attributed) -> str:
    """The gap of every world and its largest part, in one sentence."""
    found = []
    for world, parts in attribution.parts().items():
        total = parts[TOTAL]
        largest = max((name for name in parts if name != TOTAL), key=lambda name: abs(parts[name].value))
        found.append(
            f"{world} {_signed(total.value)} ({_signed(total.low)} to {_signed(total.high)}), largest part {largest}"
        )
    return "Gap between the optimal learning rate's exponent and the bound's: " + "; ".join(found) + "."


def _signed(x: float) -> str:
    return f"{round(x, 2) + 0.0:+.2f}".replace("-", "−")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return table(head, rows, numbers_from=len(head))  # words and intervals in every column


def _figure(plot: go.Figure, name: str, alt: str) -> str:
    return figure(plot, f"theory-{name}", alt=alt)
