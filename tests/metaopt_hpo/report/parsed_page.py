"""A page's elements and texts."""

from __future__ import annotations

import re
from html.parser import HTMLParser

SECTIONS = [
    "verdict",
    "asked",
    "methods",
    "compute",
    "trajectories",
    "curves",
    "importance",
    "rates",
    "law",
    "cost",
    "trials",
    "reproduce",
]


VOID = {"meta", "link", "img", "br", "hr", "input", "source", "base", "embed", "rect", "path", "circle"}


class Parsed(HTMLParser):
    """Elements with their attributes, and texts by the path of ids and data-attributes they stand in."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[list[tuple[str, dict[str, str | None]]], str]] = []
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert [t for t, _ in self.open[-1:]] == [tag]
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append((list(self.open), data))

    def within(self, tag: str | None = None, **attributes: str) -> str:
        """Text inside every element with these attributes, spaces made plain."""
        wanted = {k.replace("_", "-"): v for k, v in attributes.items()}
        parts = [
            data
            for path, data in self.texts
            if not any(t in ("script", "style") for t, _ in path)
            and any((tag is None or t == tag) and wanted.items() <= a.items() for t, a in path)
        ]
        return " ".join("".join(parts).split())

    def scripts(self) -> list[tuple[dict[str, str | None], str]]:
        out: list[tuple[dict[str, str | None], str]] = []
        for path, data in self.texts:
            if path and path[-1][0] == "script":
                out.append((path[-1][1], data))
        return out


def plain(text: str) -> str:
    return " ".join(re.sub(r"(?<=\d) ?%", " %", text).split())
