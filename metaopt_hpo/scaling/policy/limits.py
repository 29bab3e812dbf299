"""What a search may spend, in any unit that is counted: FLOPs, tokens, energy, money, time; and what is left of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

from metaopt_hpo.scaling.estimates import positive

AMOUNTS = {"budget": "FLOPs", "tokens": "tokens", "energy": "kWh", "money": "units of money"}

NOTHING = 1e-9
"""Seconds left once a deadline has passed: then nothing can finish."""

JOULES = 3.6e6
"""In a kWh."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What may be spent; by default everything is unlimited.

    Attributes:
        budget: FLOPs left, 6·N·D for a run.
        tokens: training tokens left.
        energy: kWh left; needs `speed` and `power`.
        money: left, in the unit of `price`; needs `speed` and `price`.
        seconds: wall-clock seconds left until a deadline; needs `speed`. Only what can finish is proposed, and a pilot
            only where the target can still be run after it.
        speed: FLOPs a second of one worker.
        power: watts of one worker.
        price: of one worker for an hour.
        workers: runs that may be under way at once (default 1): with a deadline, so many times its FLOPs may be spent.

    Raises:
        ValueError: an amount that is no number, or a unit without its rate; the message names it.

    Examples:
        >>> from metaopt_hpo.scaling.policy import Limits
        >>> Limits(money=100.0, price=2.0, speed=1e14).flops
        1.8e+19
    """

    budget: float = math.inf
    tokens: float = math.inf
    energy: float = math.inf
    money: float = math.inf
    seconds: float = math.inf
    speed: float | None = None
    power: float | None = None
    price: float | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        for name, unit in AMOUNTS.items():
            object.__setattr__(self, name, _amount(name, getattr(self, name), unit))
        if isinstance(self.workers, bool) or self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers!r}")
        for name in ("speed", "power", "price"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, positive(name, getattr(self, name)))
        if self.seconds != math.inf:
            positive("seconds", self.seconds)
            if self.speed is None:
                raise ValueError(
                    "seconds needs speed, the FLOPs a second of one worker, to say what can finish"
                )
        for name, rate, what in (
            ("energy", "power", "the watts of one worker"),
            ("money", "price", "what one worker costs for an hour"),
        ):
            missing = [r for r in ("speed", rate) if getattr(self, r) is None]
            if getattr(self, name) != math.inf and missing:
                raise ValueError(
                    f"{name} needs speed, the FLOPs a second of one worker, and {rate}, {what}; "
                    f"{' and '.join(missing)} must be given"
                )

    @property
    def flops(self) -> float:
        """FLOPs that may be spent in all, by the scarcest of budget, energy and money."""
        speed = self.speed or math.inf
        by_energy = math.inf if self.power is None else self.energy * JOULES / self.power * speed
        by_money = math.inf if self.price is None else self.money / self.price * 3600.0 * speed
        return min(self.budget, by_energy, by_money)

    @property
    def longest(self) -> float:
        """FLOPs that one worker can spend until the deadline."""
        return math.inf if self.speed is None else self.seconds * self.speed

    def bears(self, size: float, tokens: float) -> bool:
        """Whether a run of so many parameters and tokens can be paid for, and can finish."""
        cost = 6.0 * size * tokens
        return cost <= self.flops and tokens <= self.tokens and cost <= self.longest

    def after(self, *, flops: float, tokens: float, seconds: float = 0.0) -> Self:
        """What is left once so much has been spent, and so many seconds have gone by."""
        speed = self.speed or math.inf
        hours = flops / speed / 3600.0
        return replace(
            self,
            budget=max(self.budget - flops, 0.0),
            tokens=max(self.tokens - tokens, 0.0),
            energy=max(self.energy - hours * (self.power or 0.0) / 1e3, 0.0),
            money=max(self.money - hours * (self.price or 0.0), 0.0),
            seconds=self.seconds if self.seconds == math.inf else max(self.seconds - seconds, NOTHING),
        )


def _amount(name: str, value: float, unit: str) -> float:
    """An amount, of which there may be none left, or more than a float holds."""
    try:
        number = float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise ValueError(f"{name} must be a number of {unit}, got {value!r}")
    return number
