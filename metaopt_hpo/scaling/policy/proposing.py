"""Which configuration to run next, so that the target's optimum is found for the least compute.

Pure functions of a table (or a law) and a context: no framework, no clock, randomness only from the seed given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling.base.population import Base
from metaopt_hpo.scaling.base.sources import BaseLike, lent
from metaopt_hpo.scaling.estimates import positive
from metaopt_hpo.scaling.law import Law
from metaopt_hpo.scaling.policy.design import USUAL_CURVATURE, Design
from metaopt_hpo.scaling.policy.limits import Limits
from metaopt_hpo.scaling.policy.points import Box, FittedBowl, Runs, fitted_bowl, pilot_point
from metaopt_hpo.scaling.policy.target_points import target_point
from metaopt_hpo.scaling.sameness import at_least, same

if TYPE_CHECKING:
    from metaopt_hpo.trials.table import TrialTable


@dataclass(frozen=True, slots=True)
class Config:
    """One configuration to run.

    Examples:
        >>> from metaopt_hpo.scaling import Config
        >>> Config(size=1e8, tokens=2e9, batch=2**18, lr=2e-3).lr
        0.002
    """

    size: float
    tokens: float
    batch: float
    lr: float

    @property
    def cost(self) -> float:
        """Training FLOPs, 6·N·D."""
        return 6.0 * self.size * self.tokens


@dataclass(frozen=True, kw_only=True)
class Context(Limits):
    """What a proposal may choose from, and what may be spent (`Limits`: FLOPs, tokens, energy, money, time, workers).

    Attributes:
        target: (size, tokens) for which lr and batch are wanted.
        candidates: (size, tokens) pairs that may be run; the target need not be among them.
        lr: (low, high) bounds.
        batch: (low, high) bounds; equal where the batch is fixed.
        running: configurations under way, not to be proposed twice.
        base: tables or laws of like models to borrow strength from, as in `fit`: the first run is then near their
            optimum, and fewer pilots are bought.
        prior: a law whose exponents are believed, as in `fit`; it does the same. Not together with `base`.
        seed: of the search; one for all its proposals.

    Examples:
        >>> from metaopt_hpo.scaling import Context
        >>> context = Context(
        ...     target=(1e9, 2e10), candidates=((1e7, 2e8), (1e8, 2e9)), lr=(1e-4, 1e-2), batch=(2**16, 2**20)
        ... )
        >>> context.budget
        inf
    """

    target: tuple[float, float]
    candidates: tuple[tuple[float, float], ...]
    lr: tuple[float, float]
    batch: tuple[float, float]
    running: tuple[Config, ...] = ()
    base: BaseLike | Sequence[BaseLike] | None = None
    prior: Law | None = None
    seed: int = 0

    @property
    def known(self) -> Base | None:
        """What base or prior lends, as a population's mean."""
        return self.base if isinstance(self.base, Base) else lent(self.base, self.prior)

    def __post_init__(self) -> None:
        super().__post_init__()
        pairs = tuple(
            (positive("size", n), positive("tokens", d)) for n, d in (self.target, *self.candidates)
        )
        object.__setattr__(self, "target", pairs[0])
        object.__setattr__(self, "candidates", pairs[1:])
        for name in ("lr", "batch"):
            low, high = (positive(name, bound) for bound in getattr(self, name))
            if low > high:
                raise ValueError(f"{name} must be (low, high) with 0 < low <= high, got {(low, high)!r}")
            object.__setattr__(self, name, (low, high))
        if self.base is not None:
            object.__setattr__(self, "base", lent(self.base, self.prior))  # a table is fitted once
        if not self.candidates:
            raise ValueError("candidates must hold at least one (size, tokens)")


@dataclass(frozen=True, slots=True)
class Proposal:
    """The configuration to run next, and why in one sentence.

    Examples:
        >>> from metaopt_hpo.scaling import Config, Proposal
        >>> Proposal(Config(size=1e8, tokens=2e9, batch=2**18, lr=2e-3), "nothing is known yet").config.size
        100000000.0
    """

    config: Config
    reason: str


def propose(table: TrialTable | None, context: Context, *, law: Law | None = None) -> Proposal:
    """What to run next so that the target's optimum is found for the least compute.

    Pilots are bought while they save more target runs than they cost (`policy.design`); a pilot goes where it
    shows how loss curves in ln lr and ln batch, a run of the target where the optimum probably is (`policy.points`).

    Args:
        table: trials so far; those without a final loss count as runs and teach nothing. None is no trial yet.
        context: what may be chosen.
        law: a law fitted to `table` already; else a quadratic is fitted here, without intervals, in milliseconds.

    Returns:
        A proposal; equal arguments give an equal proposal.

    Examples:
        >>> from metaopt_hpo.scaling import Context, propose
        >>> small = ((1e7, 2e8), (1e8, 2e9))
        >>> context = Context(target=(1e9, 2e10), candidates=small, lr=(1e-4, 1e-2), batch=(2**16, 2**20))
        >>> propose(None, context).config.size
        10000000.0
    """
    return propose_next(runs_of(table, context.running), context, law=law)


def propose_batch(
    table: TrialTable | None, context: Context, count: int | None = None, *, law: Law | None = None
) -> list[Proposal]:
    """What several workers run next: each proposal knows of those before it, and none is made twice.

    Args:
        table: trials so far, as in `propose`.
        context: what may be chosen; runs under way among them.
        count: how many (default `context.workers` less what is under way).
        law: as in `propose`.

    Examples:
        >>> from metaopt_hpo.scaling import Context, propose_batch
        >>> small = ((1e7, 2e8), (1e8, 2e9))
        >>> context = Context(
        ...     target=(1e9, 2e10), candidates=small, lr=(1e-4, 1e-2), batch=(2**16, 2**20), workers=3
        ... )
        >>> len({p.config.lr for p in propose_batch(None, context)})
        3
    """
    count = max(context.workers - len(context.running), 0) if count is None else count
    out: list[Proposal] = []
    for _ in range(count):
        out.append(propose(table, context, law=law))
        config = out[-1].config
        context = context.after(flops=config.cost, tokens=config.tokens)
        context = replace(context, running=(*context.running, config))
    return out


def runs_of(table: TrialTable | None, running: tuple[Config, ...] = ()) -> Runs:
    """The runs of a table and those under way."""
    rows: list[tuple[float, float, float, float, float]] = []
    if table is not None:
        f = table.frame
        complete = f["state"].to_numpy() == "complete"
        loss = np.where(complete, f["loss"].to_numpy(dtype=float), np.nan)
        columns = (f[c].to_numpy(dtype=float) for c in ("size", "tokens", "batch", "lr"))
        rows += list(zip(*columns, loss, strict=True))
    rows += [(c.size, c.tokens, c.batch, c.lr, math.nan) for c in running]
    return Runs.of(rows)


def propose_next(
    runs: Runs, context: Context, *, law: Law | None = None, bowl: FittedBowl | None = None
) -> Proposal:
    """`propose` from arrays; `bowl` is one fitted to the runs before."""
    bowl = bowl or fitted_bowl(runs, law, context.known)
    cell = next_cell(runs, context, bowl=bowl)
    config = propose_at(runs, cell, context, bowl=bowl)
    if not _same_cell(cell, context.target):
        what = "cover the range first" if bowl is None else "where it shows how loss curves"
        return Proposal(config, f"a pilot saves more runs of the target than it costs: {what}")
    if bowl is None:
        return Proposal(config, "no optimum is seen yet: cover the range at the target")
    seen = runs.at(context.target).n
    return Proposal(
        config,
        "the law's optimum" if not seen else "the best chance to gain, by the law and the target's own runs",
    )


def propose_at(runs: Runs, cell: tuple[float, float], context: Context, *, bowl: FittedBowl | None) -> Config:
    """lr and batch of a run whose size and tokens are decided: a pilot's, where it is cheaper than the target."""
    box = Box(context.lr, context.batch)
    pilot = not at_least(cell[0] * cell[1], context.target[0] * context.target[1])
    point = (pilot_point if pilot else target_point)(runs, cell, box, bowl, context.seed)
    if not (
        math.isfinite(point[0]) and math.isfinite(point[1])
    ):  # so far from all runs that the bowl says nothing
        point = pilot_point(runs, cell, box, None, context.seed)
    return Config(cell[0], cell[1], point[1], point[0])


def next_cell(runs: Runs, context: Context, *, bowl: FittedBowl | None = None) -> tuple[float, float]:
    """(size, tokens) of the next run: a pilot, or the target once pilots cost more than they save.

    A function of the number of runs in each cell, and of how sharp the bowl is: in a flat one a run is good further
    from the optimum, and pilots save less. Once the target has been run it is run again.
    """
    cost, longest = context.target[0] * context.target[1], context.longest / 6.0
    if runs.at(context.target).n and cost <= longest:
        return context.target
    box = Box(context.lr, context.batch)
    together = min(context.flops / 6.0, context.workers * longest)
    reachable = cost <= longest
    spare = min(together - cost, longest - cost, cost) if reachable else min(together, longest)
    tokens = context.tokens - context.target[1] * reachable
    pilots = tuple(
        c
        for c in dict.fromkeys(context.candidates)
        if not _same_cell(c, context.target) and c[0] * c[1] <= spare and c[1] <= tokens
    )
    if not reachable and not pilots:
        message = f"nothing can finish within {context.seconds:g} s at {context.speed:g} FLOPs a second"
        raise MetaOptError(f"{message}: give more time, or smaller candidates")
    base = context.known
    known = None
    if base is not None:
        spread = base.at("lr", np.log(context.target))[1]
        known = (float(spread[0]), float(spread[1]), float(spread[2]))
    curvature = USUAL_CURVATURE if base is None else float(base.curvature[0])
    design = Design(
        runs.counts((*context.candidates, context.target)),
        context.target,
        box.spread,
        curvature=curvature if bowl is None else bowl.curvature,
        known=known,
    )
    best = design.best_pilot(pilots, two=box.two)
    if best is None and not reachable:  # the nearest to the target that can finish teaches most about it
        best = max(pilots, key=lambda c: c[0] * c[1])
    return best or context.target


def _same_cell(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return same(a[0], b[0]) and same(a[1], b[1])
