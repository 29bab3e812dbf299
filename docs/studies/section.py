"""One table of measured numbers, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from metaopt_hpo.markdown import markdown_table


@dataclass
class Section:
    """One table of the output."""

    title: str
    header: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    note: str = ""

    def markdown(self) -> str:
        """The section as Markdown."""
        parts = [f"## {self.title}", markdown_table(self.header, self.rows), self.note]
        return "\n\n".join(filter(None, parts))
