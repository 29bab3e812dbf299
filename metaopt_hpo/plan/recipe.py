"""What a recipe is: how to train the target, what to expect of it, and what that rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from metaopt_hpo.plan.costs import Cost, check
from metaopt_hpo.plan.model import Target


@dataclass(frozen=True, kw_only=True)
class Range:
    """A value and its interval at the recipe's level.

    Attributes:
        value, low, high: the interval holds the value.
        at_most: the value is a bound from above, `high` too, and no estimate.
    """

    value: float
    low: float
    high: float
    at_most: bool = False

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            check(name, getattr(self, name))
        if not self.low <= self.value <= self.high:
            raise ValueError(
                f"value must lie within low and high, got {self.low!r}, {self.value!r}, {self.high!r}"
            )

    def __format__(self, spec: str) -> str:
        spec = spec or ".4g"
        return (
            f"{'at most ' if self.at_most else ''}{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"
        )


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a published law says of the same target, for comparison; None where it says nothing."""

    name: str
    lr: float | None = None
    batch: float | None = None
    loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What a recipe rests on.

    Attributes:
        runs: pilots that count.
        size, tokens: of the largest of them.
        ln_size, ln_tokens: distance of the target from them, natural logarithms.
        wrong: how often predictions of next sizes were wrong without a warning, at that distance or the largest
            that was measured; None where none was measured.
        wrong_source: where that was measured, and at what distance.
        published: laws of the library at the same target.
    """

    runs: int
    size: float
    tokens: float
    ln_size: float
    ln_tokens: float
    wrong: float | None = None
    wrong_source: str = ""
    published: tuple[Published, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train the target.

    Attributes:
        target: size, tokens and schedule.
        lr: peak learning rate.
        batch: tokens per step.
        ramp: (tokens seen, tokens per step) from which on each batch holds; empty for one batch throughout.
        weight_decay: decoupled, as AdamW multiplies it by lr.
        warmup: tokens of linear warm-up.
        cooldown: tokens of the final decay to zero (schedule "wsd"; all after warm-up for linear and cosine).
        loss: expected at the end, nats per token.
        within: factor about `lr` in which MetaOptimize may move it (`expected=lr`, `within=within`).
        grad_clip: largest gradient norm.
        cost: of the run.
        basis: what this rests on.
        watch, stop: what to look at while it runs, and when to stop, a sentence each.
        warnings: about the law and the extrapolation.
        level: coverage of the intervals.
    """

    target: Target
    lr: Range
    batch: Range
    ramp: tuple[tuple[float, float], ...] = ()
    weight_decay: Range
    warmup: float
    cooldown: float
    loss: Range
    within: float
    grad_clip: float = 1.0
    cost: Cost
    basis: Basis
    watch: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    level: float = 0.9

    def __post_init__(self) -> None:
        for name in ("warmup", "cooldown"):
            check(name, getattr(self, name), zero=True)
        check("grad_clip", self.grad_clip)
        if not (math.isfinite(self.within) and self.within > 1):
            raise ValueError(f"within is a factor and must be above 1, got {self.within!r}")

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run, its batch ramp included."""
        return steps_between(self, 0.0, self.target.tokens)

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps of the warm-up."""
        return steps_between(self, 0.0, self.warmup)

    @property
    def cooldown_steps(self) -> int:
        """Optimizer steps of the final decay."""
        return steps_between(self, self.target.tokens - self.cooldown, self.target.tokens)


def steps_between(recipe: Recipe, start: float, end: float) -> int:
    """Optimizer steps from `start` to `end` tokens, each stretch of the ramp at its own batch."""
    edges = [(t, b) for t, b in recipe.ramp] or [(0.0, recipe.batch.value)]
    total = 0.0
    for i, (begin, batch) in enumerate(edges):
        until = edges[i + 1][0] if i + 1 < len(edges) else math.inf
        total += max(0.0, min(end, until) - max(start, begin)) / batch
    return math.ceil(total - 1e-9)
