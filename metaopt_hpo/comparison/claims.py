"""The verdict of a comparison in words: a headline that decides or abstains, and the sentence of numbers behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from metaopt_hpo.comparison.statistics import Difference

TIE = 0.02
"""Two losses are tied where the whole interval of their relative difference lies inside this: about a seed's noise."""

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PARTS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth", 6: "a sixth", 7: "a seventh", 8: "an eighth",
          9: "a ninth", 10: "a tenth"}  # fmt: skip
NEAR = 0.04
"""Relative distance up to which a share of compute is called by the fraction it is near."""


@dataclass(frozen=True)
class Claim:
    """One comparison with the reference: `**Tie at a fifth of the compute.** One MetaOptimize run ended …`."""

    headline: str
    text: str

    def __str__(self) -> str:
        return f"{self.headline} {self.text}"


def claim(what: str, against: str, difference: Difference, share: float) -> Claim:
    """What a difference says.

    Args:
        what: the subject of the sentence, with its capital: "One MetaOptimize run".
        against: what it is compared with: "the best of five grid runs".
        difference: ln(loss / reference's loss), paired by seed.
        share: its compute over the reference's.
    """
    ended = f"{what} ended {_beside(difference)} {against} ({interval(difference)})."
    return Claim(f"{headline(difference)} at {compute(share)}.", ended)


def headline(d: Difference) -> str:
    """Tie, lower loss, higher loss, or undecided: where the interval is missing or too wide for any of them."""
    if d.pairs < 2:
        return "Undecided on one seed,"
    if d.decided:
        return "Lower loss" if d.mean < 0 else "Higher loss"
    inside = max(-math.expm1(d.low), math.expm1(d.high)) <= TIE
    return "Tie" if inside else "Undecided"


def compute(share: float) -> str:
    """A share of compute in words: `a fifth of the compute`, `18 % of the compute`, `2.5 times the compute`."""
    if not math.isfinite(share) or share <= 0:
        return "a compute that was not recorded"
    if abs(share - 1) <= NEAR:
        return "the same compute"
    if share > 1:
        return f"{share:.2g} times the compute"
    for parts, word in _PARTS.items():
        if abs(share * parts - 1) <= NEAR:
            return f"{word} of the compute"
    return f"{100 * share:.2g} % of the compute"


def runs(count: float, title: str) -> str:
    """`five grid runs`, `7.5 Bayesian search (TPE) runs`."""
    number = (
        _NUMBERS[int(count)]
        if count == int(count) and count < len(_NUMBERS)
        else f"{count:.0f}"
        if count >= 10
        else f"{count:.2g}"
    )
    kind = title.removesuffix(" search").lower() if title.endswith(" search") else title
    return f"{number} {kind} run{'' if count == 1 else 's'}"


def percent(d: Difference) -> str:
    """A log ratio as a signed percentage with its interval: `+0.42 % (90 % interval −0.20 to +1.0 %, 3 seeds)`."""
    return f"{_signed(d.mean)} % ({interval(d)})"


def interval(d: Difference) -> str:
    """`90 % interval −0.20 to +1.0 %, 3 seeds`."""
    if d.pairs < 2:
        return "one seed, no interval"
    return f"90 % interval {_signed(d.low)} to {_signed(d.high)} %, {d.pairs} seeds"


def _beside(d: Difference) -> str:
    size = _signed(d.mean).lstrip("+−")
    if float(size) == 0:
        return "level with"
    return f"{size} % {'below' if d.mean < 0 else 'above'}"


def _signed(x: float) -> str:
    value = 100 * math.expm1(x)
    digits = 1 if abs(value) >= 1 else 2
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")
