"""Tables as Markdown: what a cell holds comes back out of the line, whatever it is."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from metaopt_hpo.markdown import markdown_table

CELL = st.text(
    st.characters(codec="utf-8", categories=["L", "N", "P", "S"], exclude_characters="\\"), min_size=1
)
TABLES = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.lists(CELL, min_size=n, max_size=n), min_size=1, max_size=5)
)


def cells(line: str) -> list[str]:
    """Those of one line, read as Markdown reads them."""
    assert line.startswith("| ")
    assert line.endswith(" |")
    return [cell.replace(r"\|", "|") for cell in re.split(r" (?<!\\)\| ", line[2:-2])]


@given(TABLES)
def test_every_cell_stands_as_it_was_given(table: list[list[str]]) -> None:
    head, *rows = table
    first, rule, *others = markdown_table(head, rows).split("\n")
    assert cells(first) == head
    assert rule == "|---" * len(head) + "|"
    assert [cells(line) for line in others] == rows


def test_numbers_names_that_repeat_and_empty_cells_stay() -> None:
    text = markdown_table(["at", "at"], [("1e-05", "0.10"), (3, "")])
    assert text == "| at | at |\n|---|---|\n| 1e-05 | 0.10 |\n| 3 |  |"
