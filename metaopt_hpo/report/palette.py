"""Colours, dashes and markers of the figures, one look per method in every figure.

Every colour has a contrast of at least 3:1 (WCAG 2.2, 1.4.11) on the light and on the dark page, and no two
methods share a dash and a marker, so that the figures can be read without colour.
"""

from __future__ import annotations

from dataclasses import dataclass

LIGHT_PAGE = "#ffffff"
DARK_PAGE = "#14171c"


@dataclass(frozen=True)
class Look:
    """How one thing is drawn; `dash` and `symbol` in Plotly's names."""

    colour: str
    dash: str
    symbol: str


_LOOKS = {
    "grid": Look("#2b7bba", "solid", "circle"),
    "random": Look("#808080", "dot", "x"),
    "tpe": Look("#d55e00", "dash", "square"),
    "gp": Look("#a67c00", "dashdot", "triangle-down"),
    "cmaes": Look("#1894b0", "longdash", "star"),
    "median": Look("#b0609a", "longdashdot", "cross"),
    "hyperband": Look("#8b6bd1", "dot", "hexagon"),
    "asha": Look("#c05a5a", "dash", "pentagon"),
    "hyperband-sync": Look("#7a5cc7", "solid", "hexagon2"),
    "pbt": Look("#2e8b57", "longdash", "triangle-left"),
    "pb2": Look("#b8651b", "dot", "triangle-right"),
    "metaoptimize": Look("#009e73", "solid", "diamond"),
    "law": Look("#b5529f", "dashdot", "triangle-up"),
    "law-no-pruner": Look("#b5529f", "dot", "triangle-ne"),
    "law+scheduler": Look("#b5529f", "solid", "triangle-nw"),
    "tpe-few": Look("#d55e00", "dot", "bowtie"),
    "tpe+asha": Look("#d55e00", "solid", "hourglass"),
}
LAW = _LOOKS["law"]
NEUTRAL = Look("#808080", "dot", "circle-open")

SERIES = tuple(
    _LOOKS[name].colour for name in ("grid", "tpe", "metaoptimize", "law", "gp", "cmaes", "hyperband", "asha")
)
"""Colours of things that are no method, in this order."""
STATES = {
    "complete": Look(_LOOKS["grid"].colour, "solid", "circle"),
    "pruned": Look(_LOOKS["tpe"].colour, "dash", "x"),
    "stopped": Look(_LOOKS["gp"].colour, "dash", "x"),
    "diverged": Look(_LOOKS["asha"].colour, "dot", "x"),
}
"""How a trial ended; another state is drawn as `NEUTRAL`."""

SIZE_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "pentagon", "star", "hexagon", "x")
_RAMP = ((0x2B, 0x7B, 0xBA), (0x86, 0x68, 0xC4), (0xC0, 0x52, 0x88), (0xD5, 0x5E, 0x00))


def of_method(name: str) -> Look:
    """The look of a method; neutral for one that has none yet."""
    return _LOOKS.get(name, NEUTRAL)


def of_rank(rank: int, count: int) -> Look:
    """The look of the rank-th of `count` sizes: a ramp from blue over purple to orange."""
    position = rank / max(1, count - 1) * (len(_RAMP) - 1)
    i = min(int(position), len(_RAMP) - 2)
    f = position - i
    r, g, b = (round((1 - f) * lo + f * hi) for lo, hi in zip(_RAMP[i], _RAMP[i + 1], strict=True))
    return Look(f"#{r:02x}{g:02x}{b:02x}", "solid", SIZE_SYMBOLS[rank % len(SIZE_SYMBOLS)])


def contrast(a: str, b: str) -> float:
    """WCAG 2.2 contrast ratio of two #rrggbb colours, 1 … 21."""
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def faded(colour: str, opacity: float) -> str:
    """The colour as rgba() with an opacity."""
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},{opacity:g})"


def _luminance(colour: str) -> float:
    def linear(v: float) -> float:
        return v / 12.92 if v <= 0.04045 else float(((v + 0.055) / 1.055) ** 2.4)

    r, g, b = (linear(int(colour[i : i + 2], 16) / 255) for i in (1, 3, 5))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
