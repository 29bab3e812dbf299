"""Factors of the open question (arXiv 2603.15958) and their levels: what may differ between a bound and a practice.

A `Setting` is one point of the simulated factors; criteria are read off the same runs, so they cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.theory.schedules import shape

Criterion = Literal["avg-grad", "tail-grad", "final-loss", "tail-loss"]
Schedule = Literal["constant", "linear", "cosine", "wsd", "cosine-floor"]
Init = Literal["gradient", "first-gradient", "zero"]
Noise = Literal["gaussian", "state-dependent", "heavy", "minibatch"]
Momentum = Literal["fixed", "half-life"]
Warmup = Literal["none", "fraction", "steps"]

CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
"""Average dual gradient norm (the bounded quantity), the same over the last quarter, final loss, and mean loss over
the last quarter."""
MOMENTUM = 0.1
"""a of the fixed level: β₁ = 0.9."""
HEAVY_TAIL = 1.5
"""Degrees of freedom of the heavy-tailed level, a Student t: moments exist below 1.5, so noise falls like B^(−1/3)."""
WARMUP_FRACTION = 0.05
WARMUP_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Levels of the simulated factors; the defaults are the bound's own assumptions."""

    schedule: Schedule = "constant"
    init: Init = "gradient"
    """m₀: the exact gradient (E₀ = 0), the first stochastic gradient, or zero."""
    noise: Noise = "gaussian"
    momentum: Momentum = "fixed"
    """fixed a, or a ∝ B (a constant half-life in tokens)."""
    a: float = MOMENTUM
    """Momentum of the fixed level; of the middle batch for half-life."""
    warmup: Warmup = "none"
    """none, a fraction of the run, or a fixed number of steps: the protocol."""

    def __post_init__(self) -> None:
        allowed = {"schedule": Schedule, "init": Init, "noise": Noise, "momentum": Momentum, "warmup": Warmup}
        for name, kind in allowed.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}"
                )
        if not 0 < self.a <= 1:
            raise ValueError(f"momentum a must lie in (0, 1], got {self.a!r}")

    @property
    def label(self) -> str:
        """A stable name, the key under which results are stored."""
        return f"{self.schedule}|{self.init}|{self.noise}|{self.momentum}|{self.a:g}|{self.warmup}"

    def momentum_at(self, batch: float, middle: float) -> float:
        """a at this batch; `middle` is the grid's geometric mean batch."""
        return self.a if self.momentum == "fixed" else min(1.0, self.a * batch / middle)

    def multipliers(self, steps: int) -> NDArray[np.float64]:
        """lr over peak lr at each step, warm-up included; of the cosine-floor level the part above the floor."""
        name = "cosine" if self.schedule == "cosine-floor" else self.schedule
        s = shape(name, np.arange(steps) / steps)
        ramp = {"none": 0.0, "fraction": WARMUP_FRACTION * steps, "steps": min(WARMUP_STEPS, steps / 2)}[
            self.warmup
        ]
        return s * np.minimum(1.0, (np.arange(steps) + 1) / ramp) if ramp >= 1 else s


IDEAL = Setting()
"""Every assumption of the bound met."""
PRACTICE = Setting(schedule="cosine", init="zero", noise="minibatch", warmup="fraction")
"""What published fits did."""

FACTORS: dict[str, str] = {
    "criterion": "looseness",
    "schedule": "assumptions",
    "init": "assumptions",
    "noise": "assumptions",
    "warmup": "protocol",
}
"""Factors of the decomposition and the hypothesis of the open question each belongs to."""


def factorial(factors: tuple[str, ...]) -> list[Setting]:
    """All combinations of ideal and practice levels of the simulated `factors`; the others stay ideal."""
    options = [(getattr(IDEAL, f), getattr(PRACTICE, f)) for f in factors]
    return [replace(IDEAL, **dict(zip(factors, levels, strict=True))) for levels in product(*options)]


def single_changes(noise: Noise = "gaussian") -> list[Setting]:
    """One level changed at a time, for the levels that the factorial leaves out."""
    base = replace(IDEAL, noise=noise)
    changes: list[dict[str, object]] = [{"schedule": s} for s in ("linear", "wsd", "cosine-floor")]
    changes += [{"init": "first-gradient"}, {"warmup": "steps"}, {"momentum": "half-life"}]
    changes += [{"a": a} for a in TUNED_MOMENTA if a != MOMENTUM]
    return [replace(base, **c) for c in changes]  # type: ignore[arg-type]


TUNED_MOMENTA = (0.03, 0.1, 0.3, 1.0)
"""Grid of the tuned level: half a decade apart, as the bound is flat in momentum."""
