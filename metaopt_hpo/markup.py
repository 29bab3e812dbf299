"""Small HTML of results for notebooks: a caption, a table, a note; every text escaped, no colours of its own."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def table(head: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str, note: str = "") -> str:
    """A captioned table and what a reader must know beside it."""
    top = "".join(f'<th scope="col">{escape(str(h))}</th>' for h in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(v))}</td>" for v in row) + "</tr>" for row in rows)
    below = f"<p>{escape(note)}</p>" if note else ""
    return (
        f'<div><table><caption style="text-align: left; font-weight: 600">{escape(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>{below}</div>"
    )


def said(text: str, *, caption: str) -> str:
    """A caption and lines of text as they stand."""
    lines = f'<pre style="white-space: pre-wrap">{escape(text)}</pre>'
    return f"<div><strong>{escape(caption)}</strong>{lines}</div>"
