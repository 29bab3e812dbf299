"""What training costs, what it may cost, and what it runs on: FLOPs, tokens, device-hours, joules, money."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.plan.currencies import CURRENCIES

BudgetKind = Literal["flops", "tokens", "gpu_hours", "joules", "money", "share"]
"""What a budget limits; `share` is a share of the target run's own cost."""


class PlanError(MetaOptError):
    """A plan cannot be made, read or carried out."""


def check(name: str, value: float, *, zero: bool = False) -> None:
    """ValueError naming the field unless `value` is finite and positive (or zero, where that is allowed)."""
    if isinstance(value, bool) or not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        raise ValueError(
            f"{name} must be a {'finite number >= 0' if zero else 'positive, finite number'}, got {value!r}"
        )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What training costs, in every unit; they add up."""

    flops: float = 0.0
    tokens: float = 0.0
    gpu_hours: float = 0.0
    """Hours of one device, all devices counted."""
    joules: float = 0.0
    money: float = 0.0
    """In the hardware's currency."""

    def __post_init__(self) -> None:
        for f in fields(self):
            check(f.name, getattr(self, f.name), zero=True)

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __mul__(self, factor: float) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) * factor for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the pilots may cost together.

    Attributes:
        kind: what is limited.
        amount: FLOPs, tokens, device-hours, joules, money, or a fraction of the target run's FLOPs.
        currency: of money, e.g. "USD".
        text: as it was given.
    """

    kind: BudgetKind
    amount: float
    currency: str = ""
    text: str = ""

    def __post_init__(self) -> None:
        check("amount", self.amount)

    def spent(self, cost: Cost, target: Cost) -> float:
        """How much of this budget's own unit a cost is."""
        if self.kind == "share":
            return cost.flops / target.flops
        return float(getattr(cost, self.kind))


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What runs are trained on.

    Attributes:
        name: as it was given, e.g. "h100x8".
        devices: how many.
        peak_flops: dense bfloat16 FLOP/s of one.
        utilisation: share of the peak that training reaches, assumed until a pilot has run.
        watts: of one device under load.
        price: of one device for an hour, in `currency`.
        measured_flops: FLOP/s of all devices together as pilots ran; stands in for peak and utilisation.
        source: where the numbers come from.
    """

    name: str
    devices: int = 1
    peak_flops: float
    utilisation: float
    watts: float
    price: float
    currency: str = "USD"
    measured_flops: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise ValueError(f"devices must be at least 1, got {self.devices!r}")
        check("peak_flops", self.peak_flops)
        check("watts", self.watts, zero=True)
        check("price", self.price, zero=True)
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"utilisation must be above 0 and at most 1, got {self.utilisation!r}")
        if self.measured_flops is not None:
            check("measured_flops", self.measured_flops)
        if self.currency not in CURRENCIES:
            raise ValueError(f"currency must be a code such as USD or EUR, got {self.currency!r}")

    @property
    def flops_per_second(self) -> float:
        """Of all devices together."""
        return self.measured_flops or self.devices * self.peak_flops * self.utilisation

    def unmeasured(self, budget: Budget) -> str:
        """Why a budget limits nothing on this hardware: another currency, no price, no power; empty where it does."""
        if budget.kind == "money" and budget.currency and budget.currency != self.currency:
            return (
                f"the budget is in {budget.currency} and prices of {self.name} are in {self.currency}: give price=… of "
                f"one device for an hour in {budget.currency} with currency={budget.currency!r}"
            )
        if budget.kind == "money" and self.price == 0:
            return f"{self.name} has no price, so a budget of money limits nothing: give price=…"
        if budget.kind == "joules" and self.watts == 0:
            return f"{self.name} has no power, so a budget of energy limits nothing: give watts=…"
        return ""

    def cost(self, flops: float, tokens: float) -> Cost:
        """What a run of so many FLOPs and tokens costs here."""
        hours = flops / self.flops_per_second / 3600.0 * self.devices
        return Cost(
            flops=flops,
            tokens=tokens,
            gpu_hours=hours,
            joules=hours * 3600.0 * self.watts,
            money=hours * self.price,
        )
