"""A plan as text for a terminal and as HTML for a notebook: the same lines, units in each."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from metaopt_hpo.plan.model import SELF_TUNING, Pilot, Plan, Uncertainty
from metaopt_hpo.plan.words import cost_in_words, percent, short

COLUMNS = (
    "pilot",
    "parameters",
    "tokens",
    "batch (tokens)",
    "steps",
    "lr",
    "share of target",
    "device-hours",
    "then lr",
    "batch",
    "weight decay",
    "loss",
)


def head(plan: Plan) -> list[str]:
    """What is planned for, in sentences."""
    target, cost = plan.target, plan.target_cost
    money = plan.hardware.currency
    batch = "batch to be found" if target.batch is None else f"{short(target.batch)} tokens per step"
    measured = "measured throughput" if plan.hardware.measured_flops else "assumed throughput"
    return [
        f"target: {short(target.size)} parameters, {short(target.tokens)} tokens, schedule {target.schedule}, {batch}",
        f"it costs {cost_in_words(cost, money)} on {plan.hardware.name} ({measured} "
        f"{plan.hardware.flops_per_second:.3g} FLOP/s)",
        f"budget: {plan.budget.text or plan.budget.kind}; {count(len(plan.chosen), 'pilot')} that pay take "
        f"{_share(plan.share)} of the target: {cost_in_words(plan.cost, money)}",
    ]


def tail(plan: Plan) -> list[str]:
    """What is known before and after, and where pilots stop paying."""
    out = [
        f"before any pilot: {known(plan.before)}",
        f"after those that pay: {known(plan.expected)} (one standard deviation)",
    ]
    beyond = [p for p in plan.pilots if not p.pays]
    if beyond:
        out.append(f"from {beyond[0].name} on a pilot costs more than it is expected to save")
    if plan.base:
        out.append(f"strength is borrowed from {', '.join(plan.base)}")
    return out


def known(u: Uncertainty) -> str:
    """What is known of the target, in words."""
    batch = f"batch {percent(u.batch)}, " if u.batch else ""
    return f"lr {percent(u.lr)}, {batch}weight decay {percent(u.weight_decay)}, loss {percent(u.loss)}"


def rows(plan: Plan) -> list[list[str]]:
    """A row for each pilot, in `COLUMNS`."""
    return [_row(p, plan) for p in plan.pilots]


def text(plan: Plan) -> str:
    """The plan for a terminal."""
    table = [list(COLUMNS), *rows(plan)]
    widths = [max(len(r[i]) for r in table) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in table]
    return "\n".join([*head(plan), "", *lines, "", *tail(plan)])


def html(plan: Plan) -> str:
    """The plan for a notebook."""
    return page_part("Plan", head(plan), COLUMNS, rows(plan), tail(plan))


def page_part(
    title: str,
    before: Sequence[str],
    columns: Sequence[str],
    body: Sequence[Sequence[str]],
    after: Sequence[str],
) -> str:
    """A title, sentences, a table, sentences; in the notebook's own colours."""
    cell = "padding:2px 8px;text-align:left;white-space:nowrap"
    header = "".join(f'<th style="{cell}">{escape(c)}</th>' for c in columns)
    lines = "".join(
        "<tr>" + "".join(f'<td style="{cell}">{escape(c)}</td>' for c in row) + "</tr>" for row in body
    )
    table = f'<div style="overflow-x:auto"><table><thead><tr>{header}</tr></thead><tbody>{lines}</tbody></table></div>'
    first, last = ("".join(f"<div>{escape(s)}</div>" for s in part) for part in (before, after))
    return f"<div><strong>{escape(title)}</strong>{first}{table}{last}</div>"


def _row(pilot: Pilot, plan: Plan) -> list[str]:
    u = pilot.expected
    if pilot.strategy == SELF_TUNING:
        lr = "finds its own"
    else:
        lr = f"{pilot.strategy}, " + ("from the runs before" if pilot.lr == "law" else f"{pilot.lr:.3g}")
    return [
        pilot.name + ("" if pilot.pays else " (does not pay)"),
        short(pilot.size),
        short(pilot.tokens),
        short(pilot.batch),
        f"{pilot.steps}",
        lr,
        _share(pilot.cost.flops / plan.target_cost.flops),
        f"{pilot.cost.gpu_hours:.3g}",
        percent(u.lr),
        percent(u.batch) if u.batch else "given",
        percent(u.weight_decay),
        percent(u.loss),
    ]


def _share(share: float) -> str:
    return f"{100 * share:.2g} %"


def count(n: int, what: str) -> str:
    """1 pilot, 2 pilots."""
    return f"{n} {what}" + ("" if n == 1 else "s")
