"""Numbers as people write them: decimal commas, grouped thousands, "125M", "2^16", "1h 2m 3s", "OOM".

A cell that can be read in two ways ("4,397") is settled by the other cells of its column, then by those of its
table, and asked for where neither settles it. Nothing is guessed.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from metaopt_hpo.trials import schema
from metaopt_hpo.trials.schema import Note, TableError

Mark = Literal["comma", "point"]
"""Which sign separates the decimals."""

COUNTS = ("size", "tokens", "batch", "target_tokens", "unique_tokens", "steps", "cost", "memory", "joules")
"""Columns that count something large: a suffix of magnitude is usual there, and nowhere else."""

SCALE = {
    "": 1.0,
    "k": 1e3,
    "m": 1e6,
    "g": 1e9,
    "b": 1e9,
    "t": 1e12,
    "ki": 2.0**10,
    "mi": 2.0**20,
    "gi": 2.0**30,
}
SCALE |= {"thousand": 1e3, "mn": 1e6, "mio": 1e6, "million": 1e6, "bn": 1e9, "billion": 1e9, "trillion": 1e12}

MISSING = frozenset(
    {"", "nan", "na", "n/a", "none", "null", "-", "–", "—", "?", "tbd", "#n/a", "#value!", "#div/0!", "<na>"}
)

WORDS = {
    "oom": "failed", "cuda oom": "failed", "out of memory": "failed", "crash": "failed", "crashed": "failed",
    "fail": "failed", "failed": "failed", "error": "failed", "err": "failed", "timeout": "failed",
    "diverged": "diverged", "div": "diverged", "div.": "diverged", "exploded": "diverged", "unstable": "diverged",
    "pruned": "failed", "killed": "failed", "stopped": "failed", "running": "running", "pending": "running",
}  # fmt: skip
"""What stands where a loss should, and how such a run ended: without a loss, a stopped run is a failed one."""

WORD_COLUMNS = ("loss", "tokens", "seconds", "memory")

_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_GROUPED = re.compile(r"[1-9]\d{0,2}(?:[ ' _\u00a0\u2009\u202f]\d{3})+(?![\d])")
_POWER = re.compile(r"(?:([\d.,]+)\s*[x×·*]\s*)?(\d+)\s*(?:\^|\*\*)\s*([-+]?\d+)")
_BODY = re.compile(r"([-+]?)([\d.,]*\d[\d.,]*)(e[-+]?\d+)?", re.IGNORECASE)
_DURATION = re.compile(
    r"(?:(\d+(?:[.,]\d+)?)\s*(?:d|days?),?\s*)?(?:(\d+(?:[.,]\d+)?)\s*(?:h|hrs?|hours?)\s*)?"
    r"(?:(\d+(?:[.,]\d+)?)\s*(?:m|mins?|minutes?)\s*)?(?:(\d+(?:[.,]\d+)?)\s*(?:s|secs?|seconds?)\s*)?",
    re.IGNORECASE,
)
_CLOCK = re.compile(r"(?:(\d+)\s*days?,?\s*)?(\d+):([0-5]\d)(?::([0-5]\d(?:\.\d+)?))?")
_MULTIPLE = re.compile(r"[\d.,]+\s*[x×](?:\s*chinchilla)?|[x×]\s*[\d.,]+", re.IGNORECASE)
_EPOCHS = re.compile(r"[\d.,]+\s*(?:ep|epochs?)", re.IGNORECASE)
_UNIT_OF_MULTIPLES = re.compile(r"^\s*[x×]\s*|\s*(?:[x×](?:\s*chinchilla)?|ep|epochs?)\s*$", re.IGNORECASE)
_SEED = re.compile(r"[A-Za-z_#=:\- ]*?(\d+)")


class _Refused(Exception):
    """A cell that is no number; the message ends a sentence that names the cell."""


@dataclass
class Cell:
    """One text as read: its value, or both readings where the meaning of its comma or point is open."""

    value: float = math.nan
    other: float | None = None
    """The value with the other decimal mark; `value` is then the one of `says`' opposite reading."""
    open_mark: str = ""
    """The sign whose meaning is open: "," or "."."""
    says: Mark | None = None
    """The decimal mark that this cell proves."""
    word: str = ""
    percent: bool = False
    marked: bool = False


def _body(digits: str, exponent: str, *, points_open: bool) -> Cell:
    """A run of digits, commas and points as a number."""
    commas, points = digits.count(","), digits.count(".")
    power = 10.0 ** int(exponent[1:]) if exponent else 1.0

    def value(text: str) -> float:
        return float(text + exponent) if exponent else float(text)

    if not commas and not points:
        return Cell(value(digits))
    if commas and points:
        decimal: Mark = "comma" if digits.rfind(",") > digits.rfind(".") else "point"
        mark, group = (",", ".") if decimal == "comma" else (".", ",")
        whole, _, rest = digits.rpartition(mark)
        if mark in whole or not _grouped(whole, group) or group in rest:
            raise _Refused("is no number")
        return Cell(value(whole.replace(group, "") + "." + rest), says=decimal)
    mark, n = (",", commas) if commas else (".", points)
    proves_group: Mark = "point" if mark == "," else "comma"
    proves_decimal: Mark = "comma" if mark == "," else "point"
    if n > 1:
        if not _grouped(digits, mark):
            raise _Refused("is no number")
        return Cell(value(digits.replace(mark, "")), says=proves_group)
    as_decimal = value(digits.replace(mark, "."))
    if _grouped(digits, mark) and not exponent and (mark == "," or points_open):
        return Cell(as_decimal, other=float(digits.replace(mark, "")) * power, open_mark=mark)
    zeros = mark == "." and not digits.rpartition(".")[2].strip(
        "0"
    )  # "20000.0", as programs write whole numbers
    return Cell(as_decimal, says=None if zeros else proves_decimal)


def _grouped(text: str, mark: str) -> bool:
    return re.fullmatch(rf"[1-9]\d{{0,2}}(?:{re.escape(mark)}\d{{3}})+", text) is not None


def read_cell(text: str, name: str, *, points_open: bool = False) -> Cell:
    """One cell's text as a number of the column `name`.

    Args:
        points_open: the table writes decimals with a comma, so that a lone point may group thousands.
    """
    text = text.strip().strip("\u00a0").replace("\u2212", "-")
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda m: "^" + m[0].translate(_RAISED), text)
    low = text.lower()
    if low in MISSING:
        return Cell()
    if low.lstrip("+-") in {"inf", "infinity", "∞"}:
        return Cell(-math.inf if text.startswith("-") else math.inf)
    if name in WORD_COLUMNS and low in WORDS:
        return Cell(word=low)
    if name in ("seed",):
        found = _SEED.fullmatch(text)
        if found:
            return Cell(float(found[1]))
    if name == "seconds" and (seconds := _duration(low)) is not None:
        return Cell(seconds)
    if name in ("tokens", "target_tokens", "unique_tokens") and _MULTIPLE.fullmatch(text):
        raise _Refused(
            "is a multiple: pass units={'tokens': 'per_parameter'} where it counts tokens a parameter, or "
            "units={'tokens': 'chinchilla'} where it counts 20 tokens a parameter each"
        )
    if name in ("tokens", "target_tokens") and _EPOCHS.fullmatch(text):
        raise _Refused(
            "counts epochs: pass units={'tokens': 'epochs'} and name the data's unique tokens with "
            "columns={'unique_tokens': …}"
        )
    marked = bool(re.search(r"[*†‡]+$", text))
    text = re.sub(r"\s*[*†‡]+$", "", text)
    percent = text.endswith("%")
    text = text.removesuffix("%").strip()
    if _GROUPED.match(text):
        text = re.sub(r"(?<=\d)[ ' _\u00a0\u2009\u202f](?=\d{3})", "", text)
    power = _POWER.fullmatch(text)
    if power:
        factor = _body(power[1], "", points_open=points_open) if power[1] else Cell(1.0)
        if factor.open_mark:
            raise _Refused("can be read in two ways")
        return Cell(factor.value * float(power[2]) ** int(power[3]), marked=marked, says=factor.says)
    body = _BODY.match(text)
    if body is None:
        raise _Refused("is no number")
    rest = text[body.end() :].strip().lower()
    rest = re.sub(r"\s*(?:params?|parameters|tokens?|toks?)$", "", rest) if name in COUNTS else rest
    if rest and (name not in COUNTS or rest not in SCALE):
        raise _Refused("is no number")
    digits = body[2]
    if digits.endswith(",") or (digits.startswith(",")):
        raise _Refused("is no number")
    cell = _body(digits, (body[3] or "").lower(), points_open=points_open)
    factor_ = SCALE[rest] * (0.01 if percent else 1.0) * (-1.0 if body[1] == "-" else 1.0)
    cell.value *= factor_
    cell.other = None if cell.other is None else cell.other * factor_
    cell.percent, cell.marked = percent, marked
    return cell


def _duration(text: str) -> float | None:
    clock = _CLOCK.fullmatch(text)
    if clock:
        days, a, b, c = (float(x) if x else 0.0 for x in clock.groups())
        if clock[4] is None:
            return None  # 12:34 may be minutes or hours
        return 86400 * days + 3600 * a + 60 * b + c
    found = _DURATION.fullmatch(text)
    if found is None or not any(found.groups()):
        return None
    d, h, m, s = (float(x.replace(",", ".")) if x else 0.0 for x in found.groups())
    return 86400 * d + 3600 * h + 60 * m + s


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
                    except _Refused as e:
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


def plain_number(text: str) -> bool:
    """Whether Python itself reads the text as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


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
