"""Counts and amounts as people write and say them."""

from __future__ import annotations

import math
import re

from metaopt_hpo.plan.costs import Budget, Cost, PlanError

SCALE = {
    "": 1.0,
    **dict.fromkeys(("k", "thousand"), 1e3),
    **dict.fromkeys(("m", "million"), 1e6),
    **dict.fromkeys(("b", "g", "billion"), 1e9),
    **dict.fromkeys(("t", "trillion"), 1e12),
}


def number(text: float | str, name: str) -> float:
    """A count as people write it: 7e9, "7B", "7 billion", "7,000,000".

    Raises:
        PlanError: not a positive number.
    """
    found = re.fullmatch(
        r"\s*(\d{1,3}(?:,\d{3})+(?:\.\d+)?|[\d_]*\.?\d+(?:e[+-]?\d+)?|[\d_]+\.?)"
        r"\s*([kmbgt]?|thousand|million|billion|trillion)\s*",
        str(text),
        re.IGNORECASE,
    )
    value = float(re.sub("[_,]", "", found[1])) * SCALE[found[2].lower()] if found else math.nan
    if not 0 < value < math.inf:
        raise PlanError(f"{name} must be a positive number such as 7e9, '180M' or '1.4T', got {text!r}")
    return value


def numbers(text: str, name: str) -> list[float]:
    """Several counts, separated by commas."""
    return [number(part, name) for part in text.split(",")]


def short(value: float) -> str:
    """Three digits and a letter: 1.4T, 7B, 110M."""
    for end, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g}{end}"
    return f"{value:.3g}"


def in_words(amount: float, budget: Budget) -> str:
    """An amount in a budget's own unit."""
    unit = {
        "share": f"{100 * amount:.2g} % of the target",
        "flops": f"{amount:.2g} FLOPs",
        "tokens": f"{amount:.2g} tokens",
        "gpu_hours": f"{amount:.2g} device-hours",
        "joules": f"{amount / 3.6e6:.2g} kWh",
        "money": f"{amount:.2g} {budget.currency}",
    }
    return unit[budget.kind]


def cost_in_words(cost: Cost, currency: str) -> str:
    """A cost in every unit."""
    return (
        f"{cost.flops:.3g} FLOPs, {short(cost.tokens)} tokens, {cost.gpu_hours:.3g} device-hours, "
        f"{cost.joules / 3.6e6:.3g} kWh, {cost.money:.3g} {currency}"
    )


def decided(what: str, pilot: str = "") -> str:
    """A decision in a word or two: `run w4`, `target`, or `end` where no pilot is run any more."""
    return " ".join(["end" if what == "skip" else what, pilot]).strip()


def known(sd: float) -> str:
    """How well a quantity is known, from the standard deviation of its logarithm: `to ±22 %`, or a factor.

    Beyond a factor of two a percentage misleads, for it cannot reach 100 % downwards.
    """
    return f"to ±{100 * math.expm1(sd):.2g} %" if sd < math.log(2.0) else f"within a factor of {factor(sd)}"


def percent(sd: float) -> str:
    """The same, short, for a table: `±22 %`, or `×/÷ 3.5`."""
    return f"±{100 * math.expm1(sd):.3g} %" if sd < math.log(2.0) else f"×/÷ {factor(sd)}"


def device_time(hours: float) -> str:
    """Device time in the unit that fits: `1.4 device-seconds`, `12 device-minutes`, `3 device-hours`."""
    for unit, scale in (("hours", 1.0), ("minutes", 60.0)):
        if hours * scale >= 1.0:
            return f"{hours * scale:.3g} device-{unit}"
    return f"{3600.0 * hours:.2g} device-seconds"


def factor(sd: float) -> str:
    """`7.4` of a standard deviation of a logarithm."""
    return f"{math.exp(min(sd, 50.0)):.2g}"


def part_of(some: int, of: int, noun: str) -> str:
    """`3 pilots`, or `2 of 3 pilots`."""
    return f"{'' if some == of else f'{some} of '}{of} {noun}{'' if of == 1 else 's'}"
