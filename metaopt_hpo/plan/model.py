"""What a plan is: data, with its units and checks. What makes, runs or writes one is above."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from metaopt_hpo.plan.costs import Budget, Cost, Hardware, check

VERSION = 1
"""Of plan.toml; a later one is refused."""

SELF_TUNING = "metaoptimize"
"""The strategy of pilots that need no lr."""

SCHEDULES = ("wsd", "linear", "cosine", "constant")
"""Schedules of the target run."""

LAW_LR: Literal["law"] = "law"
"""`Pilot.lr` of a schedule run whose lr is chosen when its turn comes, from the runs before it."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The run that everything is for.

    Attributes:
        size: trainable non-embedding parameters.
        tokens: training tokens.
        schedule: of its lr.
        batch: tokens per step, where it is given and not to be chosen.
        flops_per_token: training FLOPs a token; None is 6·size.
        width: of the workload's member of this size, where it has widths.
    """

    size: float
    tokens: float
    schedule: str = "wsd"
    batch: float | None = None
    flops_per_token: float | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        check("size", self.size)
        check("tokens", self.tokens)
        for name in ("batch", "flops_per_token"):
            value = getattr(self, name)
            if value is not None:
                check(name, value)
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")

    @property
    def flops(self) -> float:
        """Of the whole run."""
        return (self.flops_per_token or 6.0 * self.size) * self.tokens


@dataclass(frozen=True, kw_only=True)
class Vary:
    """What pilots may differ in.

    Attributes:
        sizes: trainable non-embedding parameters, ascending.
        widths: the workload's widths of those sizes; empty where it has none.
        tokens_per_parameter: lengths of pilots, in tokens a parameter.
        batches: tokens per step that pilots may have.
        lr: lowest and highest lr of schedule runs.
        seeds: how often each pilot is run.
    """

    sizes: tuple[float, ...]
    widths: tuple[int, ...] = ()
    tokens_per_parameter: tuple[float, ...] = (20.0,)
    batches: tuple[float, ...] = ()
    lr: tuple[float, float] = (1e-5, 1e-1)
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        for name in ("sizes", "tokens_per_parameter", "batches", "lr"):
            for value in getattr(self, name):
                check(name, value)
        if not self.sizes or not self.tokens_per_parameter:
            raise ValueError("sizes and tokens_per_parameter must hold at least one value each")
        if list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"sizes must be ascending and distinct, got {self.sizes!r}")
        if self.widths and len(self.widths) != len(self.sizes):
            raise ValueError(
                f"widths must be as many as sizes, got {len(self.widths)} widths and {len(self.sizes)} sizes"
            )
        if not self.lr[0] < self.lr[1]:
            raise ValueError(f"lr must be (low, high) with low < high, got {self.lr!r}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be at least one, distinct and >= 0, got {self.seeds!r}")


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """Standard deviations, ln units, of what is known of the target: 0.2 is about ±20 %.

    Attributes:
        lr, batch, weight_decay: of the optimum.
        loss: of the loss that the target will reach.
    """

    lr: float
    batch: float
    weight_decay: float
    loss: float

    def __post_init__(self) -> None:
        for f in fields(self):
            check(f.name, getattr(self, f.name), zero=True)


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """One small run.

    Attributes:
        name: unique in the plan.
        size, tokens, batch: parameters, training tokens, tokens per step.
        width: of the workload's member, where it has widths.
        strategy: "metaoptimize" for a run that finds its own lr, else a schedule's name.
        lr: peak lr of a schedule; "law" where it is chosen from the runs before; None for a run that finds its own.
        seed: of weights and data order.
        cost: expected.
        expected: what is known of the target once this pilot and those before it are done.
        pays: whether it is expected to save more of the target's cost than it costs.
    """

    name: str
    size: float
    tokens: float
    batch: float
    width: int | None = None
    strategy: str = SELF_TUNING
    lr: float | Literal["law"] | None = None
    seed: int = 0
    cost: Cost
    expected: Uncertainty
    pays: bool = True

    def __post_init__(self) -> None:
        for name in ("size", "tokens", "batch"):
            check(name, getattr(self, name))
        if self.seed < 0:
            raise ValueError(f"seed of {self.name!r} must be >= 0, got {self.seed!r}")
        if isinstance(self.lr, float | int):
            check("lr", self.lr)
        if self.strategy == SELF_TUNING and self.lr is not None:
            raise ValueError(f"lr of {self.name!r} must be left out: {SELF_TUNING} runs find their own")
        if self.strategy != SELF_TUNING and self.lr is None:
            raise ValueError(f"lr of {self.name!r} must be a number or {LAW_LR!r}: {self.strategy} needs one")

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, math.ceil(self.tokens / self.batch))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """From a target and a budget to a list of small runs, in the order in which they are worth running.

    Attributes:
        target: the run that everything is for.
        vary: what pilots may differ in.
        budget: what they may cost together.
        hardware: what they run on.
        workload: a built-in workload's name, a Python file, or a command line with placeholders.
        pilots: in their order; those with `pays` false are beyond the point where the next one saves what it costs.
        before: what is known of the target before any pilot.
        base: tables, laws or names of the library's fitted laws that strength is borrowed from.
        workload_options: further options of the workload, as text.
        version: of the format.
    """

    target: Target
    vary: Vary
    budget: Budget
    hardware: Hardware
    workload: str
    pilots: tuple[Pilot, ...]
    before: Uncertainty
    base: tuple[str, ...] = ()
    workload_options: dict[str, str] = field(default_factory=dict)
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(
                f"version must be {VERSION}, got {self.version!r}; a later one needs a later metaopt-hpo"
            )
        if self.workload and not self.workload.strip():
            raise ValueError(
                "workload must be a workload's name, a Python file, or a command line, got nothing"
            )
        if complaint := self.hardware.unmeasured(self.budget):
            raise ValueError(f"budget cannot be kept to: {complaint}")
        names = [p.name for p in self.pilots]
        if len(set(names)) != len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise ValueError(f"pilots must have different names, and {twice!r} stands twice")
        for p in self.pilots:
            if p.size > self.target.size or (p.size == self.target.size and p.tokens >= self.target.tokens):
                raise ValueError(
                    f"pilots must be smaller than the target, and {p.name!r} has {p.size:g} parameters and "
                    f"{p.tokens:g} tokens where the target has {self.target.size:g} and {self.target.tokens:g}"
                )

    @property
    def target_cost(self) -> Cost:
        """Of the target run on this hardware."""
        return self.hardware.cost(self.target.flops, self.target.tokens)

    @property
    def chosen(self) -> tuple[Pilot, ...]:
        """The pilots that pay."""
        return tuple(p for p in self.pilots if p.pays)

    @property
    def cost(self) -> Cost:
        """Of the pilots that pay, together."""
        return sum((p.cost for p in self.chosen), Cost())

    @property
    def share(self) -> float:
        """FLOPs of the pilots that pay, as a fraction of the target's."""
        return self.cost.flops / self.target_cost.flops

    @property
    def expected(self) -> Uncertainty:
        """What is known of the target once the pilots that pay are done."""
        chosen = self.chosen
        return chosen[-1].expected if chosen else self.before
