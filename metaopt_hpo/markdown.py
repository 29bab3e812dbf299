"""A table of text as Markdown, for commands that print one and pages that keep it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table without a newline at its end; numbers are shown as they stand, so format them before.

    Cells are not padded and the rule is short: one long cell changes no other line of a page.
    """
    # here, because a command that prints no table need not wait for them
    import pandas as pd
    from tabulate import DataRow, TableFormat

    row = DataRow("|", "|", "|")
    style = TableFormat(None, lambda widths, _: "|---" * len(widths) + "|", None, None, row, row, 1, None)
    frame = pd.DataFrame([[_escaped(cell) for cell in r] for r in rows], columns=[_escaped(h) for h in head])
    return str(frame.to_markdown(index=False, tablefmt=style, disable_numparse=True, stralign=None))


def _escaped(cell: object) -> str:
    return str(cell).replace("|", r"\|")
