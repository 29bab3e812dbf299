"""One cell's text as a number: decimal commas, grouped thousands, "125M", "2^16", "1h 2m 3s", "OOM".

A text that can be read in two ways ("4,397") keeps both readings; `numbers` settles it by the rest of its table.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

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
_SEED = re.compile(r"[A-Za-z_#=:\- ]*?(\d+)")


class Refused(Exception):
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
            raise Refused("is no number")
        return Cell(value(whole.replace(group, "") + "." + rest), says=decimal)
    mark, n = (",", commas) if commas else (".", points)
    proves_group: Mark = "point" if mark == "," else "comma"
    proves_decimal: Mark = "comma" if mark == "," else "point"
    if n > 1:
        if not _grouped(digits, mark):
            raise Refused("is no number")
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
        raise Refused(
            "is a multiple: pass units={'tokens': 'per_parameter'} where it counts tokens a parameter, or "
            "units={'tokens': 'chinchilla'} where it counts 20 tokens a parameter each"
        )
    if name in ("tokens", "target_tokens") and _EPOCHS.fullmatch(text):
        raise Refused(
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
            raise Refused("can be read in two ways")
        return Cell(factor.value * float(power[2]) ** int(power[3]), marked=marked, says=factor.says)
    body = _BODY.match(text)
    if body is None:
        raise Refused("is no number")
    rest = text[body.end() :].strip().lower()
    rest = re.sub(r"\s*(?:params?|parameters|tokens?|toks?)$", "", rest) if name in COUNTS else rest
    if rest and (name not in COUNTS or rest not in SCALE):
        raise Refused("is no number")
    digits = body[2]
    if digits.endswith(",") or (digits.startswith(",")):
        raise Refused("is no number")
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


def plain_number(text: str) -> bool:
    """Whether Python itself reads the text as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
