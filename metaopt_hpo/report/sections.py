"""Pages made of sections: a heading, words, tables and figures, and nothing that needs a network."""

from __future__ import annotations

import html
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

_STYLE = """
body{font-family:system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1a1d21;background:#fff;
line-height:1.45}
table{border-collapse:collapse;margin:1rem 0;font-size:.9rem}
th,td{border:1px solid #c8ccd2;padding:.3rem .6rem;text-align:left;vertical-align:top}
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums}
td.number{white-space:nowrap}
.table{overflow-x:auto}
@media (prefers-color-scheme:dark){body{color:#e4e6ea;background:#14171c}th,td{border-color:#444a52}
.plotly text{fill:#e4e6ea!important}}
"""


def page(sections: Sequence[str], *, title: str) -> str:
    """A page of its own, plotly.js inside: about 5 MB."""
    head = (
        "<meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    )
    return (
        f"<!doctype html><html lang='en'><head>{head}<script>{get_plotlyjs()}</script></head>"
        f"<body><h1>{html.escape(title)}</h1>{''.join(sections)}</body></html>"
    )


def section(title: str, *parts: str) -> str:
    """A section with a heading."""
    return f"<section><h2>{html.escape(title)}</h2>{''.join(parts)}</section>"


def words(text: str) -> str:
    """A paragraph."""
    return f"<p>{html.escape(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[object]], *, numbers_from: int = 1) -> str:
    """A table; columns from `numbers_from` on are set as numbers."""

    def cell(tag: str, i: int, value: object) -> str:
        kind = " class=number" if i >= numbers_from else ""
        return f"<{tag}{kind}>{html.escape(str(value))}</{tag}>"

    top = "".join(cell("th", i, h) for i, h in enumerate(head))
    body = "".join("<tr>" + "".join(cell("td", i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    return f"<div class=table><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def figure(plot: go.Figure, name: str) -> str:
    """A figure; its name is its id, so that the same result gives the same page."""
    text: str = plot.to_html(full_html=False, include_plotlyjs=False, div_id=name)
    return text
