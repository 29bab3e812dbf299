"""Numbers as a person who trains models reads them: sizes, FLOPs, rates, losses. Missing ones are a dash."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

DASH = "–"
SPACE = "\u00a0"
"""Between a number and its unit, so that a line never ends between them."""

_PREFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def count(x: float) -> str:
    """Parameters or tokens: `1.23 M`, `960 k`, `4,096`."""
    if not math.isfinite(x):
        return DASH
    if abs(x) < 9999.5:
        return f"{x:,.0f}" if x == round(x) else f"{x:.4g}"
    for factor, prefix in _PREFIXES:
        # 999 999 is 1 M, not 1e+03 k
        if abs(x) >= factor * 0.9995:
            return f"{x / factor:.3g}{SPACE}{prefix}"
    return f"{x:.4g}"


def scientific(x: float, digits: int = 2) -> str:
    """`3.2e-3`: learning rates and FLOPs, in the notation of a training script."""
    if not math.isfinite(x):
        return DASH
    if x == 0:
        return "0"
    mantissa, exponent = f"{x:.{digits - 1}e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def loss(x: float) -> str:
    """A loss to five significant digits, enough to see a seed's noise."""
    return f"{x:.{_decimals(x)}f}" if math.isfinite(x) else DASH


def spread(values: Sequence[float]) -> str:
    """`2.3451 ± 0.0043`: mean and sample standard deviation over seeds; the mean alone for one."""
    if not values or not all(math.isfinite(v) for v in values):
        return DASH
    mean = statistics.fmean(values)
    if len(values) < 2:
        return loss(mean)
    return f"{loss(mean)}{SPACE}±{SPACE}{statistics.stdev(values):.{_decimals(mean)}f}"


def _decimals(x: float) -> int:
    if x == 0 or not math.isfinite(x):
        return 4
    return min(8, max(0, 4 - math.floor(math.log10(abs(x)))))


def times(x: float) -> str:
    """A factor: `9.6×`."""
    return f"{x:.2g}×" if math.isfinite(x) and x < 100 else f"{x:.0f}×" if math.isfinite(x) else DASH


def runs(x: float) -> str:
    """A cost in full runs at the target size."""
    return f"{x:.3g} full run{'' if f'{x:.3g}' == '1' else 's'}" if math.isfinite(x) else DASH


def span(values: Sequence[float]) -> str:
    """`9.1e-4 to 4.1e-3`, or the one rate where all are alike."""
    low, high = scientific(min(values)), scientific(max(values))
    return low if low == high else f"{low} to {high}"


def plural(n: float, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{n:g} {noun}" + ("" if n == 1 else "s")


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    *first, last = parts or ("none",)
    return f"{', '.join(first)} and {last}" if first else last


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean of the positive, finite values; NaN without any."""
    usable = [math.log(v) for v in values if math.isfinite(v) and v > 0]
    return math.exp(statistics.fmean(usable)) if usable else math.nan


def sentence(text: str) -> str:
    """The text with a capital and a full stop, whoever wrote it."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
