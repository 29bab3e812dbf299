"""The one template of every page: its head, its policy, its figures and tables; nothing needs a network.

A content security policy inside the page forbids every request and every script but the two whose hashes it names, so
that not even an escaping mistake could run what somebody wrote into a trial's name. Colours, the dark page, print and
the phone are the style sheet's.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from metaopt_hpo.report import words as text_of


@dataclass(frozen=True)
class Panel:
    """One figure of a page: its data for Plotly, or why there is none."""

    id: str
    alt: str
    summary: str
    absent: str = ""
    data: Markup | None = None
    note: str = ""


def render(template: str, filters: dict[str, Callable[..., Any]] | None = None, **context: Any) -> str:
    """A page from a template that extends `base.html.j2`: about 5 MB, for Plotly's script is inside, once."""
    scripts = {"plotly": _normal(get_plotlyjs()), "page": _resource("page.js")}
    page: str = (
        _environment(filters)
        .get_template(template)
        .render(
            css=Markup(_resource("page.css")),  # our own file, not a user's text
            scripts={name: Markup(text) for name, text in scripts.items()},
            hashes=[_hash(text) for text in scripts.values()],
            **context,
        )
    )
    return page


def page(sections: Sequence[str], *, title: str, answer: str, kicker: str = "") -> str:
    """A page of sections.

    Args:
        sections: HTML, each from `section`.
        title: its heading.
        answer: what the page says, in one sentence.
        kicker: what kind of page it is, above the heading.
    """
    body = Markup("\n".join(sections))
    return render("sections.html.j2", title=title, answer=answer, kicker=kicker, body=body)


def section(title: str, *parts: str) -> str:
    """A section with a heading."""
    return f"<section><h2>{html.escape(title)}</h2>{''.join(parts)}</section>"


def words(text: str) -> str:
    """A paragraph."""
    return f"<p>{html.escape(text)}</p>"


def numbers(text: str) -> str:
    """Text as it stands, in a fixed-width face."""
    return f"<pre>{html.escape(text)}</pre>"


def table(head: Sequence[str], rows: Sequence[Sequence[object]], *, numbers_from: int = 1) -> str:
    """A table; columns from `numbers_from` on are set as numbers."""

    def cell(tag: str, i: int, value: object) -> str:
        kind = ' class="cell-number"' if i >= numbers_from else ""
        return f"<{tag}{kind}>{html.escape(str(value))}</{tag}>"

    top = "".join(cell("th", i, h) for i, h in enumerate(head))
    body = "".join("<tr>" + "".join(cell("td", i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    return (
        '<div class="box" tabindex="0" role="region" aria-label="Table">'
        f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def panel(plot: go.Figure, name: str, alt: str, summary: str, note: str = "") -> Panel:
    """A figure for a template; its name is its id, so that the same result gives the same page."""
    return Panel(name, alt, summary, "", json_for_script(plot.to_json()), note)


def figure(plot: go.Figure, name: str, *, alt: str, summary: str = "") -> str:
    """A figure as HTML for `section`.

    Args:
        plot: drawn on `axes.empty_figure`.
        name: its id.
        alt: what is drawn, for those who cannot see it.
        summary: the caption; `alt` where none is given.
    """
    macros: Any = _environment().get_template("panel.html.j2").module
    return str(macros.panel(panel(plot, name, alt, summary or f"{alt}.")))


def json_for_script(text: str) -> Markup:
    """JSON that cannot end the script element it stands in."""
    safe = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return Markup(safe.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def tied(text: str) -> Markup:
    """A user's or our own text, escaped, whose numbers no line end may cut: `14 %`, `−0.2 … +1.0 %`, `1e-4`."""
    safe = str(escape(text))
    safe = re.sub(r"(?<=\d) ?%", text_of.SPACE + "%", safe)
    safe = re.sub(r" ([…±]) ", rf"{text_of.SPACE}\1{text_of.SPACE}", safe)
    return Markup(re.sub(r"\b\d[\d.]*e-\d+\b", r'<span class="number">\g<0></span>', safe))


def _environment(filters: dict[str, Callable[..., Any]] | None = None) -> Environment:
    environment = Environment(
        loader=PackageLoader("metaopt_hpo.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"tied": tied, **(filters or {})}
    return environment


def _resource(name: str) -> str:
    return _normal((files("metaopt_hpo.report") / "templates" / name).read_text(encoding="utf-8"))


def _normal(text: str) -> str:
    """Line ends as an HTML parser reads them, so that the hash of a script holds."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
