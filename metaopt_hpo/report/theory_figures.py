"""Figures and report sections of `verify-rule` and `attribute`: pure functions from results to Plotly and HTML.

Text that a user wrote is escaped wherever it appears.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from metaopt_hpo.attribution.estimand import BATCH_EXPONENTS
from metaopt_hpo.attribution.findings import WorldFinding
from metaopt_hpo.attribution.outcome import Attribution
from metaopt_hpo.report.axes import empty_figure
from metaopt_hpo.report.figures import plain
from metaopt_hpo.report.palette import NEUTRAL, of_rank
from metaopt_hpo.report.sections import BOUNDS, Source, figure, page, table
from metaopt_hpo.theory.predicted import predicted_exponents
from metaopt_hpo.theory.verify import RuleCheck

MARGIN = 0.4
"""How far the lr axis reaches beyond the rule and the exponents without loss."""

LEAST_GAP = 0.01
"""Least half-width of the axis of parts."""

RULE_ALT = "Exponent of every term of the bound against the exponent of lr, in {}"
PARTS_ALT = "Parts of the gap with their intervals, by world"
PATHS_ALT = "Exponent of the optimal lr in tokens along batch paths, against the bound"


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


def parts_figure(attribution: Attribution) -> go.Figure:
    """Signed parts of the gap with intervals, grouped by world: parts that cancel are visible as such."""
    plot = empty_figure()
    for rank, finding in enumerate(attribution.findings):
        parts = finding.decomposition.parts
        total = finding.decomposition.total
        estimates = [p.phi for p in parts] + [total]
        plot.add_bar(
            x=[p.name for p in parts] + ["total"],
            y=[e.value for e in estimates],
            error_y={
                "type": "data", "symmetric": False, "color": NEUTRAL.colour,
                "array": [e.high - e.value for e in estimates], "arrayminus": [e.value - e.low for e in estimates],
            },
            name=plain(finding.world),
            marker={"color": of_rank(rank, len(attribution.findings)).colour},
        )  # fmt: skip
    plot.update_layout(barmode="group")
    shown = [
        abs(e) for trace in plot.data for e in (*trace.y, *trace.error_y.array, *trace.error_y.arrayminus)
    ]
    plot.update_yaxes(title_text="Part of the gap", zeroline=True)
    if max(shown) < LEAST_GAP:  # rounding is no part of anything
        plot.update_yaxes(range=[-LEAST_GAP, LEAST_GAP])
    return plot


def path_figure(attribution: Attribution) -> go.Figure:
    """Exponent of the optimal lr in D along B ~ D^b, ideal and practice, against the bound."""
    plot = empty_figure()
    b = np.array(BATCH_EXPONENTS)
    plot.add_scatter(
        x=b, y=[predicted_exponents().along(v) for v in b], mode="lines", name="bound",
        line={"width": 3, "color": NEUTRAL.colour},
    )  # fmt: skip
    for rank, finding in enumerate(attribution.findings):
        colour = of_rank(rank, len(attribution.findings)).colour
        for setting, dash in ((finding.ideal, "dot"), (finding.practice, "solid")):
            plane = finding.plane(setting, "final-loss")
            along = [plane.joint(float(v)) for v in b]
            name = f"{plain(finding.world)}, {'practice' if dash == 'solid' else 'assumptions met'}"
            plot.add_scatter(
                x=b, y=[e.value for e in along], mode="lines+markers", name=name,
                line={"dash": dash, "color": colour},
                error_y={
                    "type": "data", "symmetric": False, "thickness": 1, "color": colour,
                    "array": [e.high - e.value for e in along], "arrayminus": [e.value - e.low for e in along],
                },
            )  # fmt: skip
    plot.add_hline(y=0, line={"width": 1, "dash": "dot", "color": NEUTRAL.colour})
    plot.update_xaxes(title_text="b of the batch path B ~ D^b")
    plot.update_yaxes(title_text="Exponent of optimal lr in D")
    return plot


def rule_section(check: RuleCheck) -> str:
    """`verify-rule` as an HTML section: what was checked, under which assumptions, table and figure, for each scale."""
    blocks = []
    for one in (check, *check.also):
        table = _table(("quantity", "value"), one.rows())
        blocks.append(
            table
            + _figure(
                rule_figure(one),
                f"rule-{one.scale}",
                f"Exponent of every term of the bound against that of lr, in {one.scale}",
            )
        )
    label = (
        "The rates are proved: exact linear programs with dual certificates, under the assumptions in the table. "
        "The constant factor is a number computed, not proved."
        if check.label == "proved"
        else "The bound itself is a heuristic, so that everything here is checked, not proved."
    )
    title = f"<h2>Rule {html.escape(check.rule)}</h2>"
    return f'<section class="theory">{title}<p>{html.escape(label)}</p>{"".join(blocks)}</section>'


def attribution_section(attribution: Attribution) -> str:
    """`attribute` as an HTML section: the signed table, what cannot be used, and both figures."""
    rows = attribution.rows()
    parts = [_table(tuple(rows[0]), [tuple(r.values()) for r in rows])]
    notes = [n for f in attribution.findings for n in _notes(f)]
    parts.append("<ul>" + "".join(f"<li>{html.escape(n)}</li>" for n in notes) + "</ul>")
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


def attribution_page(attribution: Attribution) -> str:
    """`attribute` as a page of its own: about 5 MB, no network."""
    return page(
        [attribution_section(attribution)],
        title="Learning-rate laws against convergence bounds",
        answer=attribution_answer(attribution),
        kicker=f"Attribution, tier {attribution.tier}",
        sources=[BOUNDS, Source(f"Command: metaopt-hpo attribute --tier {attribution.tier}")],
    )


def attribution_answer(attribution: Attribution) -> str:
    """The gap of every world and its largest part, in one sentence."""
    found = []
    for finding in attribution.findings:
        total = finding.decomposition.total
        part = max(finding.decomposition.parts, key=lambda p: abs(p.phi.value))
        found.append(
            f"{finding.world} {_signed(total.value)} ({_signed(total.low)} to {_signed(total.high)}), "
            f"largest part {part.name}"
        )
    return "Gap between the optimal learning rate's exponent and the bound's: " + "; ".join(found) + "."


def _signed(x: float) -> str:
    return f"{round(x, 2) + 0.0:+.2f}".replace("-", "−")


def _notes(finding: WorldFinding) -> list[str]:
    c = finding.config
    notes = [
        f"{finding.world}: {len(c.tokens)} budgets × {len(c.batch)} batches, seeds {', '.join(map(str, c.seeds))}, "
        f"b = {c.b:g}, {c.bootstrap} resamples, {finding.decomposition.method}"
    ]
    reasons = {
        reason: [k for k, v in finding.unusable.items() if v == reason]
        for reason in finding.unusable.values()
    }
    notes += [
        f"{finding.world}: criteria {', '.join(names)} unusable: {why}" for why, names in reasons.items()
    ]
    if finding.plane(finding.practice, "final-loss").curved:
        notes.append(
            f"{finding.world}: the curvature test rejects a single power of D for practice's final loss"
        )
    return notes


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return table(head, rows, numbers_from=len(head))  # words and intervals in every column


def _figure(plot: go.Figure, name: str, alt: str) -> str:
    return figure(plot, f"theory-{name}", alt=alt)
