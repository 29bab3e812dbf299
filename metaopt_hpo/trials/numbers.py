"""The number columns of a table, as people write them.

A cell that can be read in two ways ("4,397") is settled by the other cells of its column, then by those of its
table, and asked for where neither settles it. Nothing is guessed.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from metaopt_hpo.trials import schema
from metaopt_hpo.trials.cells import COUNTS, Cell, Mark, Refused, plain_number, read_cell
from metaopt_hpo.trials.schema import Note, TableError

_UNIT_OF_MULTIPLES = re.compile(r"^\s*[x×]\s*|\s*(?:[x×](?:\s*chinchilla)?|ep|epochs?)\s*$", re.IGNORECASE)


@dataclass
class _Column:
    """What is known of one column while a table is read."""

    source: str = ""
    factor: float = 1.0
    texts: int = 0
    proof: dict[Mark, tuple[int, str]] = field(default_factory=dict)
    open: list[tuple[int, str, float, float, str]] = field(default_factory=list)
    percents: int = 0
    plain: int = 0
    first_percent: tuple[int, str] | None = None
    marked: list[tuple[int, str]] = field(default_factory=list)


class NumberReader:
    """Reads the number columns of one table, chunk by chunk, and settles open cells at its end.

    Args:
        decimal: the decimal mark where the user says it; else it is found out.
        points_open: see `read_cell`.
        line: rows before the first one of a text file, so that a cell's line can be said; None for no file.
        relative: columns that the user says count multiples or epochs, so that "20x" is 20 there.
    """

    def __init__(
        self,
        decimal: Mark | None = None,
        *,
        points_open: bool = False,
        line: int | None = None,
        relative: Collection[str] = (),
    ) -> None:
        self.relative = frozenset(relative)
        self.decimal = decimal
        self.points_open = points_open or decimal == "comma"
        self.line = line
        self.columns: dict[str, _Column] = defaultdict(_Column)
        self.words: list[tuple[int, str]] = []

    def cell(self, row: int, name: str) -> str:
        """How a message names a cell: by row and by the column's name in the table."""
        source = self.columns[name].source or name
        own = "" if source == name else f" ({name})"
        line = "" if self.line is None else f", line {row + self.line}"
        return f"row {row}{line} of column {source!r}{own}"

    def read(self, values: pd.Series, name: str, source: str | None = None) -> np.ndarray:
        """`values` as float64; open cells are NaN until `settle`."""
        column = self.columns[name]
        column.source = source or name
        if pd.api.types.is_bool_dtype(values):
            raise TableError(f"column {column.source!r} holds true/false, expected numbers{unit_of(name)}")
        if pd.api.types.is_numeric_dtype(values):
            column.plain += len(values)
            return values.to_numpy(dtype="float64", na_value=math.nan)
        out = np.empty(len(values))
        cache: dict[str, Cell] = {}
        for i, (row, v) in enumerate(zip(values.index, values.tolist(), strict=True)):
            if isinstance(v, str):
                cell = cache.get(v)
                if cell is None:
                    try:
                        text = _UNIT_OF_MULTIPLES.sub("", v) if name in self.relative else v
                        cell = cache[v] = read_cell(text, name, points_open=self.points_open)
                    except Refused as e:
                        raise TableError(
                            f"{self.cell(row, name)} holds {v!r}, expected a number{unit_of(name)}: it {e}"
                        ) from None
                out[i] = self._take(cell, row, v, column)
            elif v is None or v is pd.NA or v is pd.NaT:
                out[i] = math.nan
            elif isinstance(v, (int, float, np.number)) and not isinstance(v, bool):
                column.plain += 1
                out[i] = float(v)
            elif name == "seconds" and isinstance(v, pd.Timedelta):
                out[i] = v.total_seconds()
            else:
                raise TableError(
                    f"{self.cell(row, name)} holds {type(v).__name__} {str(v)[:40]!r}, expected a number"
                )
        return out

    def _take(self, cell: Cell, row: int, text: str, column: _Column) -> float:
        column.texts += not (self.points_open and plain_number(text))
        if cell.word:
            self.words.append((row, cell.word))
            return math.nan
        if cell.percent:
            column.percents += 1
            column.first_percent = column.first_percent or (row, text)
        elif math.isfinite(cell.value):
            column.plain += 1
        if cell.marked and len(column.marked) < 1000:
            column.marked.append((row, text))
        if cell.says and cell.says not in column.proof:
            column.proof[cell.says] = (row, text)
        if cell.open_mark:
            assert cell.other is not None
            if self.decimal is not None:
                return cell.value if (cell.open_mark == ",") == (self.decimal == "comma") else cell.other
            column.open.append((row, text, cell.value, cell.other, cell.open_mark))
            return math.nan
        return cell.value

    @property
    def comma_proved(self) -> bool:
        """Whether some cell proves that the table writes its decimals with a comma."""
        return any("comma" in c.proof for c in self.columns.values())

    def settle(self, frame: pd.DataFrame, notes: list[Note], in_units: Collection[str] = ()) -> None:
        """Fill the open cells of `frame` (rows as read), or ask; add what should be known to `notes`.

        Args:
            in_units: columns that are counted in another unit, whose values need not be whole.
        """
        table: set[Mark] = set()
        for column in self.columns.values():
            table |= set(column.proof)
        for name, column in self.columns.items():
            if len(column.proof) > 1:
                (i, a), (j, b) = column.proof["comma"], column.proof["point"]
                raise TableError(
                    f"column {column.source!r} writes decimals in two ways: {b!r} in {self._row(j)} and {a!r} in "
                    f"{self._row(i)}; write them alike"
                )
            if self.decimal is not None and column.proof and self.decimal not in column.proof:
                mark, (i, a) = next(iter(column.proof.items()))
                raise TableError(
                    f"{self.cell(i, name)} holds {a!r}, whose decimal mark is a {mark}, not a {self.decimal}"
                )
            if column.percents and column.plain and column.first_percent:
                i, a = column.first_percent
                raise TableError(
                    f"column {column.source!r} mixes percent ({a!r} in {self._row(i)}) with plain numbers; write them "
                    "alike"
                )
            self._settle_column(name, column, table, frame, in_units)
            if column.texts and name not in ("seconds", "progress"):
                detail = ""
                if column.percents:
                    detail += "; percents were divided by 100"
                if column.marked:
                    i, a = column.marked[0]
                    detail += (
                        f"; the marks of {len(column.marked)} were left out (first: {a!r} in {self._row(i)})"
                    )
                if "comma" in column.proof:
                    detail += "; the comma is the decimal mark"
                message = (
                    f"{column.texts} values of column {name!r} were text and were read as numbers{detail}"
                )
                notes.append(Note("text-numbers", column.texts, message))

    def _settle_column(
        self, name: str, column: _Column, table: set[Mark], frame: pd.DataFrame, in_units: Collection[str]
    ) -> None:
        if not column.open:
            return
        proof: set[Mark] = set(column.proof)
        i, text, decimal, grouped, mark = column.open[0]
        if not proof and len(table) == 1:
            proof = table
            # a decimal point elsewhere says little about a comma here, but for counts, which are whole
            if proof == {"point"} and mark == "," and name not in COUNTS:
                proof = set()
            if proof == {"comma"} and mark == "." and name not in COUNTS:
                proof = set()
        elif not proof and not table and name in COUNTS and name not in in_units and decimal % 1:
            proof = {"point"}  # what is counted is whole
        if len(proof) != 1:
            raise TableError(
                f"{self.cell(i, name)} holds {text!r}, which can be {decimal:g} or {grouped:g}: pass "
                "decimal='comma' or decimal='point'"
            )
        decimals_by_comma = proof == {"comma"}
        at = np.array([row for row, *_ in column.open])
        values = np.array(
            [d if (m == ",") == decimals_by_comma else g for _, _, d, g, m in column.open], dtype=float
        )
        target = frame[name].to_numpy(copy=True)
        target[at] = values * column.factor
        frame[name] = target

    def _row(self, row: int) -> str:
        return f"row {row}" + ("" if self.line is None else f" (line {row + self.line})")


def unit_of(name: str) -> str:
    """A column's unit in brackets, where it has one."""
    unit = schema.UNITS.get(name, "")
    return f" ({unit})" if unit and unit != "-" else ""


def decimal_mark(text: str | None) -> Mark | None:
    """The option `decimal` as given by a user.

    Raises:
        ValueError: neither comma nor point.
    """
    if text is None:
        return None
    marks: dict[str, Mark] = {",": "comma", "comma": "comma", ".": "point", "point": "point", "dot": "point"}
    if text not in marks:
        raise ValueError(f"decimal must be 'comma' or 'point', got {text!r}")
    return marks[text]


def joined(words: Iterable[str], last: str = "and") -> str:
    """Words as a list in a sentence."""
    items = list(words)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"
