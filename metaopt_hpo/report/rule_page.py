"""A rule's check against bounds as a figure, a section and a page; text that a user wrote is escaped."""

from __future__ import annotations

import html

import numpy as np
import plotly.graph_objects as go

from metaopt_hpo.report.axes import empty_figure
from metaopt_hpo.report.palette import NEUTRAL, of_rank
from metaopt_hpo.report.sections import BOUNDS, Source, figure, page, table
from metaopt_hpo.theory.rule_check import RuleCheck

MARGIN = 0.4
"""How far the lr axis reaches beyond the rule and the exponents without loss."""


def rule_figure(check: RuleCheck) -> go.Figure:
    """Every term's rate against the lr exponent at the rule's momentum and batch; the bound is their upper edge."""
    plot = empty_figure()
    own = check.exponents["lr"]
    low, high = check.lr_interval
    x = np.linspace(min(own, low) - MARGIN, max(own, high) + MARGIN, 201)
    values = np.array([slope * x + start for _, slope, start in check.lines])
    for i, (name, _, _) in enumerate(check.lines):
        look = of_rank(i, len(check.lines))
        plot.add_scatter(
            x=x, y=values[i], mode="lines", name=name,
            line={"width": 1.4, "dash": ("dash", "dot", "dashdot", "longdash")[i % 4], "color": look.colour},
        )  # fmt: skip
    edge = {"width": 3, "color": NEUTRAL.colour}
    plot.add_scatter(x=x, y=values.max(axis=0), mode="lines", name="slowest term", line=edge)
    plot.add_scatter(
        x=[low, high], y=[check.rate_held] * 2, mode="lines+markers", name="no loss",
        line={"width": 5, "color": "#009e73"}, marker={"size": 9, "symbol": "diamond"},
    )  # fmt: skip
    plot.add_scatter(
        x=[own], y=[check.rule_rate], mode="markers", name="the rule",
        marker={"size": 12, "symbol": "x", "color": "#d55e00"},
    )  # fmt: skip
    plot.update_xaxes(title_text=f"Exponent of lr in {check.scale}")
    plot.update_yaxes(title_text="Exponent of the bound")
    return plot


def rule_section(check: RuleCheck) -> str:
    """`verify-rule` as an HTML section: what was checked, under which assumptions, table and figure, for each scale."""
    blocks = []
    for one in (check, *check.also):
        alt = f"Exponent of every term of the bound against that of lr, in {one.scale}"
        blocks.append(
            table(("quantity", "value"), one.rows(), numbers_from=2)  # words and intervals in every column
            + figure(rule_figure(one), f"theory-rule-{one.scale}", alt=alt)
        )
    label = (
        "The rates are proved: exact linear programs with dual certificates, under the assumptions in the table. "
        "The constant factor is a number computed, not proved."
        if check.label == "proved"
        else "The bound itself is a heuristic, so that everything here is checked, not proved."
    )
    title = f"<h2>Rule {html.escape(check.rule)}</h2>"
    return f'<section class="theory">{title}<p>{html.escape(label)}</p>{"".join(blocks)}</section>'


def rule_page(check: RuleCheck) -> str:
    """`verify-rule` as a page of its own: about 5 MB, no network."""
    return page(
        [rule_section(check)],
        title="A scaling rule against convergence bounds",
        answer=rule_answer(check),
        kicker=f"Rule {check.rule}",
        sources=[BOUNDS, Source(f"Command: metaopt-hpo verify-rule {check.rule!r}")],
    )


def rule_answer(check: RuleCheck) -> str:
    """The check in one sentence."""
    low, high = check.lr_interval
    range_ = f"{low:.3g}" if check.identified else f"{low:.3g} to {high:.3g}"
    verdict = {
        "optimal": "loses nothing, even against the best momentum and batch",
        "aligned": "loses nothing at its own momentum and batch",
        "unidentified": "loses nothing that the bound can see, for its noise floor hides the exponent",
        "misaligned": f"loses {check.rate_loss:.3g} of the bound's exponent",
    }[check.verdict]
    return (
        f"Along {check.scale} the rule {verdict}: its lr exponent is {check.exponents['lr']:.3g}, "
        f"exponents without loss are {range_} ({check.label})."
    )
