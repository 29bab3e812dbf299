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

from metaopt_hpo._version import __version__
from metaopt_hpo.report import words as text_of
from metaopt_hpo.report.behind import Numbers, behind


@dataclass(frozen=True)
class Panel:
    """One figure of a page: its data for Plotly, or why there is none."""

    id: str
    alt: str
    summary: str
    absent: str = ""
    data: Markup | None = None
    note: str = ""
    numbers: Numbers | None = None
    """The table behind the figure."""


@dataclass(frozen=True)
class Source:
    """Something a page rests on: a text, and where it is found.

    An address of the web or a file beside the page; none where the text says enough, as a command does.
    """

    text: str
    href: str = ""

    def __post_init__(self) -> None:
        scheme, colon, _ = self.href.partition(":")
        if colon and scheme not in ("https", "http"):
            raise ValueError(f"href must be a web address or a file beside the page, got {self.href!r}")


METAOPTIMIZE = Source(
    "MetaOptimize: the step size learned during the run", "https://arxiv.org/abs/2402.02342"
)
BOUNDS = Source("Bounds and practice of learning-rate scaling", "https://arxiv.org/abs/2603.15958")


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
            version=__version__,
            **{"sources": (), **context},
        )
    )
    return page


def page(
    sections: Sequence[str],
    *,
    title: str,
    answer: str,
    kicker: str = "",
    sources: Sequence[Source] = (),
) -> str:
    """A page of sections.

    Args:
        sections: HTML, each from `section`.
        title: its heading.
        answer: what the page says, in one sentence.
        kicker: what kind of page it is, above the heading.
        sources: what the page rests on: papers, files, commands; at its end.
    """
    body = Markup("\n".join(sections))
    return render("sections.html.j2", title=title, answer=answer, kicker=kicker, body=body, sources=sources)


NUMBER = re.compile(r"[-+−±×<>≥≤~ ]*\d|[–—]?$|not |inf|nan")
"""How a cell of a column of numbers begins."""

SHORT = 24
"""Characters that a cell shows on one line."""


def section(title: str, *parts: str) -> str:
    """A section with a heading."""
    return f"<section><h2>{html.escape(title)}</h2>{''.join(parts)}</section>"


def words(text: str) -> str:
    """A paragraph."""
    return f"<p>{html.escape(text)}</p>"


def numbers(text: str) -> str:
    """Text as it stands, in a fixed-width face."""
    return f"<pre>{html.escape(text)}</pre>"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    numbers_from: int = 1,
    label: str = "Table",
    stack: bool = False,
) -> str:
    """A table.

    Args:
        head: names of the columns.
        rows: texts or numbers, one for each column.
        numbers_from: the first column that may be set as numbers, where all its cells begin as numbers do.
        label: its name for those who cannot see it.
        stack: on a phone each row becomes a card with the names of its columns, for rows with sentences in them.
    """
    right = {
        i
        for i in range(numbers_from, len(head))
        if any(str(row[i]) for row in rows) and all(NUMBER.match(str(row[i])) for row in rows)
    }

    def cell(tag: str, i: int, value: object) -> str:
        kinds = ["cell-number"] * (i in right) + ["cell-short"] * (len(str(value)) <= SHORT)
        named = f' class="{" ".join(kinds)}"' if kinds else ""
        if tag == "th":
            named += ' scope="col"'
        elif stack:
            named += f' data-label="{html.escape(head[i])}"'
        return f"<{tag}{named}>{html.escape(str(value))}</{tag}>"

    top = "".join(cell("th", i, h) for i, h in enumerate(head))
    body = "".join("<tr>" + "".join(cell("td", i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    kind = ' class="stack"' if stack else ""
    return (
        f'<div class="box" tabindex="0" role="region" aria-label="{html.escape(label)}">'
        f"<table{kind}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values in two columns, on a phone in one."""
    rows = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in pairs)
    return f'<dl class="facts">{rows}</dl>'


def panel(plot: go.Figure, name: str, alt: str, summary: str, note: str = "") -> Panel:
    """A figure for a template; its name is its id, so that the same result gives the same page."""
    return Panel(name, alt, summary, "", json_for_script(plot.to_json()), note, behind(plot))


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
    safe = re.sub(r"(?<=[\d%]) to (?=[−+]?\d)", rf"{text_of.SPACE}to{text_of.SPACE}", safe)
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
