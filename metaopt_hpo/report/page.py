"""The report: one HTML file that needs no network, for a screen, a phone and paper.

`render` is a pure function of the outcome: the same outcome gives the same bytes. A content security policy
inside the page forbids every request and every script but the two whose hashes it names, so that not even
an escaping mistake could run what somebody wrote into a trial's name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from metaopt_hpo.atomic import WriteError, write_text
from metaopt_hpo.comparison.methods import method
from metaopt_hpo.comparison.outcome import Outcome, judge, percent
from metaopt_hpo.comparison.protocol import Comparison
from metaopt_hpo.comparison.statistics import Difference
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.report import cost_views, figures, law_views, search_views, words
from metaopt_hpo.report.figures import Figure, LegendEntry

REPORT_FILE = "report.html"

_DASHES = {
    "solid": "",
    "dot": "2 3",
    "dash": "7 4",
    "dashdot": "7 3 2 3",
    "longdash": "11 4",
    "longdashdot": "11 3 2 3",
}
_SYMBOLS = {
    "circle": '<circle cx="15" cy="6" r="4"/>',
    "circle-open": '<circle cx="15" cy="6" r="3.4" fill="none" stroke-width="1.8"/>',
    "square": '<rect x="11" y="2" width="8" height="8"/>',
    "diamond": '<path d="M15 1l5 5-5 5-5-5z"/>',
    "triangle-up": '<path d="M15 1.5l5 9h-10z"/>',
    "triangle-down": '<path d="M15 10.5l5-9h-10z"/>',
    "x": '<path d="M11 2l8 8m0-8l-8 8" fill="none" stroke-width="2.4"/>',
    "cross": '<path d="M15 1v10m-5-5h10" fill="none" stroke-width="2.6"/>',
    "star": '<path d="M15 0l1.5 4.2 4.5.1-3.6 2.7 1.3 4.3L15 8.7l-3.7 2.6 1.3-4.3L9 4.3l4.5-.1z"/>',
    "hexagon": '<path d="M15 1l4.3 2.5v5L15 11l-4.3-2.5v-5z"/>',
    "pentagon": '<path d="M15 1l5 3.7-1.9 5.8h-6.2L10 4.7z"/>',
}


class ReportError(MetaOptError):
    """A report cannot be written."""


@dataclass(frozen=True)
class _Panel:
    """One figure of the page: its data for Plotly, or why there is none."""

    id: str
    alt: str
    summary: str
    absent: str = ""
    data: Markup | None = None
    legend: tuple[tuple[Markup, str], ...] = ()
    note: str = ""


def report_from_folder(folder: str | os.PathLike[str]) -> Path:
    """Write `report.html` into a results folder from the trials saved there; nothing is trained.

    Raises:
        CompareError: the folder holds no finished comparison.
        OutcomeError: its trials cannot be judged.
        ReportError: the file cannot be written.
    """
    return write_report(Comparison.read(folder), Path(folder) / REPORT_FILE)


def write_report(comparison: Comparison, path: str | os.PathLike[str]) -> Path:
    """Judge a comparison and write its report; the file appears whole or not at all.

    Raises:
        OutcomeError: no method has a finished trial with a finite loss for every seed.
        ReportError: the file cannot be written.
    """
    path = Path(path)
    text = render(judge(comparison))
    try:
        write_text(path, text)
    except WriteError as error:
        raise ReportError(f"the report is not written: {error}") from error
    return path


def render(outcome: Outcome) -> str:
    """The report as one HTML text, about 5 MB: Plotly's script is inside, once."""
    environment = Environment(
        loader=PackageLoader("metaopt_hpo.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": words.count, "sci": _scientific, "loss": words.loss, "spread": words.spread,
        "times": words.times, "runs": words.runs, "plural": words.plural, "listed": words.listed,
        "percent": percent, "span": words.span, "tied": _tied, "sentence": words.sentence, "interval": _interval,
        "gmean": words.geometric_mean, "number": _number,
    }  # fmt: skip
    scripts = {"plotly": _normal(get_plotlyjs()), "page": _resource("report.js")}
    plan = outcome.comparison.plan
    rows = search_views.method_rows(outcome)
    compute = search_views.loss_against_compute(outcome)
    trajectories = search_views.rate_trajectories(outcome)
    rates = law_views.loss_at_rate(outcome)
    law = law_views.optimal_rate(outcome)
    cost = cost_views.search_cost(outcome)
    trials = search_views.trial_rows(outcome)
    return environment.get_template("report.html.j2").render(
        outcome=outcome,
        plan=plan,
        titles=[method(m).title for m in plan.methods],
        rows=rows,
        match=search_views.MATCH_WORDS,
        tiles=_tiles(cost),
        law=law,
        cost=cost,
        trials=trials,
        states=Counter(t.record.state for t in trials),
        totals=_totals(outcome),
        plan_json=json.dumps(plan.to_json(), indent=2, ensure_ascii=False),
        panels={
            "compute": _panel("compute", "Best loss against compute", compute, figures.loss_against_compute),
            "trajectories": _panel(
                "trajectories", "Learning rate during training", trajectories, figures.rate_trajectories
            ),
            "rates": _panel("rates", "Loss against learning rate at every size", rates, figures.loss_at_rate),
            "law": _panel("law", "Best learning rate against model size", law, figures.optimal_rate),
            "cost": _panel("cost", "Cost of the search with and without it", cost, figures.search_cost),
        },
        css=Markup(_resource("report.css")),  # our own file, not a user's text
        scripts={name: Markup(text) for name, text in scripts.items()},
        hashes=[_hash(text) for text in scripts.values()],
    )


def _panel(name: str, alt: str, view: Any, draw: Callable[[Any], Figure]) -> _Panel:
    if view.absent:
        return _Panel(name, alt, "", view.absent)
    figure = draw(view)
    legend = tuple((_swatch(entry), entry.text) for entry in figure.legend)
    return _Panel(name, alt, view.summary, "", _json_for_script(figure.plot.to_json()), legend, figure.note)


def _json_for_script(text: str) -> Markup:
    """JSON that cannot end the script element it stands in."""
    safe = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return Markup(safe.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _swatch(entry: LegendEntry) -> Markup:
    """A small picture of a line, a marker or a band, for a legend; made of our own constants only."""
    look = entry.look
    parts = ""
    if entry.band:
        parts += f'<rect x="1" y="1" width="28" height="10" fill="{look.colour}" fill-opacity="0.35"/>'
    if entry.line:
        dash = f' stroke-dasharray="{_DASHES[look.dash]}"' if look.dash != "solid" else ""
        parts += f'<path d="M1 6h28" fill="none" stroke-width="2.2"{dash}/>'
    if entry.marker:
        parts += _SYMBOLS[look.symbol]
    return Markup(
        f'<svg viewBox="0 0 30 12" width="30" height="12" aria-hidden="true" fill="{look.colour}" '
        f'stroke="{look.colour}" stroke-width="0">{parts}</svg>'
    )


@dataclass(frozen=True)
class _Tile:
    """A key number: what a single run reached, and at what cost."""

    label: str
    loss: str
    loss_note: str
    cost: str
    cost_note: str


def _tiles(cost: cost_views.SearchCost) -> list[_Tile]:
    tiles = []
    for row in cost.rows[1:]:
        if row.difference is None or not row.losses:
            continue
        change = f"{100 * math.expm1(row.difference.mean):+.1f} %".replace("-", "−")
        note = percent(row.difference).partition("(")[2].rstrip(")")
        share = 1 / row.saving if row.saving > 0 else math.nan
        tiles.append(
            _Tile(
                row.label,
                change,
                note,
                f"{share:.0%}" if math.isfinite(share) else words.DASH,
                row.saving_words,
            )
        )
    return tiles


def _totals(outcome: Outcome) -> dict[str, float]:
    frame = outcome.comparison.table.frame
    return {
        "trials": len(frame),
        "cost": outcome.comparison.table.cost(),
        "seconds": float(frame["seconds"].sum(min_count=1)),
        "joules": float(frame["joules"].sum(min_count=1)),
    }


def _number(x: float) -> str:
    """Full precision for a data attribute; empty where there is no number, so that it sorts last."""
    return repr(float(x)) if math.isfinite(x) else ""


def _interval(d: Difference) -> str:
    """The interval alone, for a cell whose column says what it is."""
    return f"{percent(d).split('interval ')[1].split(',')[0]}" if d.pairs > 1 else "one seed, no interval"


def _scientific(x: float, digits: int = 2) -> Markup:
    return _tied(words.scientific(x, digits))


def _tied(text: str) -> Markup:
    """A user's or our own text, escaped, whose numbers no line end may cut: `14 %`, `−0.2 … +1.0 %`, `1e-4`."""
    safe = str(escape(text))
    safe = re.sub(r"(?<=\d) ?%", words.SPACE + "%", safe)
    safe = re.sub(r" ([…±]) ", rf"{words.SPACE}\1{words.SPACE}", safe)
    return Markup(re.sub(r"\b\d[\d.]*e-\d+\b", r'<span class="number">\g<0></span>', safe))


def _resource(name: str) -> str:
    return _normal((files("metaopt_hpo.report") / "templates" / name).read_text(encoding="utf-8"))


def _normal(text: str) -> str:
    """Line ends as an HTML parser reads them, so that the hash of a script holds."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
