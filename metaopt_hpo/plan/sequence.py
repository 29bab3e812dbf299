"""In which order pilots are worth buying: greedy designs that no budget changes, so that more budget only adds.

Candidates are one run a cell (size, tokens) that finds its own lr, the same at other batches, and three runs of a
schedule whose lr is chosen when their turn comes. Each step of a design takes the block that lowers the expected
excess most for its cost. What a run costs beside its FLOPs, a person's attention among it, sets how large the pilots
are: one design for each of several such overheads. A plan is a design and how far to go along it; a larger budget
chooses among more of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from metaopt_hpo.plan.costs import Cost
from metaopt_hpo.plan.knowledge import Knowledge, Run, compute_share, excess
from metaopt_hpo.plan.model import SELF_TUNING, Uncertainty

OVERHEADS = tuple(10.0 ** (-0.5 * k) for k in range(5, 15))
"""Cost of a run beside its own, as shares of the target's FLOPs: 0.3 % to 10⁻⁷."""

MIN_GAIN = 0.02
"""Fall of the logarithm of the expected excess below which a block is not worth a person's attention."""

LOSS_WEIGHT = 0.2
"""What a fall of the logarithm of the loss's variance counts beside one of the excess."""

MAX_RUNS = 32
"""Runs of a design, each configuration counted once whatever its seeds."""

SPARE = 0.12
"""Fall of the logarithm of the expected excess that a design may give up for fewer runs: those first bought, at the
smallest sizes, teach little beside the later ones."""

SCHEDULED = 6
"""Runs of a schedule in one cell: more show little that is new."""

MIN_STEPS = 512
"""Shortest pilot, optimizer steps: a run that finds its own lr needs some hundred, and a decay is to be seen."""


@dataclass(frozen=True)
class Cell:
    """A size and a length that pilots may have, with their batches: the first is the usual one."""

    size: float
    tokens: float
    batches: tuple[float, ...]


@dataclass(frozen=True)
class Option:
    """A design up to one of its blocks: its runs, what they cost together, and what is known then."""

    design: int
    runs: tuple[Run, ...]
    cost: Cost
    known: Uncertainty

    def total(self, target_flops: float) -> float:
        """In target runs: the pilots and the compute that the remaining excess is worth."""
        return self.cost.flops / target_flops + compute_share(self.known)


def options(
    cells: Sequence[Cell],
    knowledge: Knowledge,
    *,
    schedule: str,
    cost: Callable[[Run], Cost],
    target_flops: float,
    seeds: int = 1,
    found: bool = True,
) -> list[Option]:
    """Every design, cut after each of its blocks.

    Args:
        cells: what may be run.
        knowledge: of the target, before any pilot.
        schedule: of runs that do not find their own lr.
        cost: of a run.
        target_flops: of the target run; pilots never cost more together.
        seeds: runs of each configuration.
        found: whether runs that find their own lr are to be had.
    """
    blocks = [block for c in cells for block in _blocks(c, schedule)]
    if not found:
        blocks = [block for block in blocks if block[0].strategy != SELF_TUNING]
    flops = np.array([sum(cost(r).flops for r in b) * seeds for b in blocks])
    return [
        option
        for i, overhead in enumerate(OVERHEADS)
        for option in _design(i, overhead * target_flops, blocks, flops, knowledge, cost, target_flops, seeds)
    ]


def _design(
    index: int,
    overhead: float,
    blocks: Sequence[tuple[Run, ...]],
    flops: np.ndarray,
    knowledge: Knowledge,
    cost: Callable[[Run], Cost],
    target_flops: float,
    seeds: int,
) -> Iterator[Option]:
    runs: list[Run] = []
    bought: list[tuple[Run, ...]] = []
    spent = Cost()
    now = knowledge.after(())
    price = flops + overhead * seeds * np.array([len(b) for b in blocks])
    while len(runs) < MAX_RUNS * seeds:
        open_ = [i for i, b in enumerate(blocks) if _may_follow(b, runs, seeds)]
        open_ = [i for i in open_ if spent.flops + flops[i] <= target_flops]
        if not open_:
            return
        then = knowledge.after_each(runs, [blocks[i] * seeds for i in open_])
        gain = np.log(excess(now.lr, now.batch) / excess(then[:, 0], then[:, 1]))
        loss = np.hypot(then[:, 2], excess(then[:, 0], then[:, 1]))
        gain = gain + LOSS_WEIGHT * 2.0 * np.log(now.loss / loss)
        worth = np.where(gain > MIN_GAIN, gain / price[open_], 0.0)
        best = int(worth.argmax())
        if not worth[best] > 0:
            return
        block = blocks[open_[best]]
        bought.append(block * seeds)
        runs += bought[-1]
        spent = sum((cost(r) for r in bought[-1]), spent)
        now = knowledge.uncertainty(*(float(v) for v in then[best]))
        kept = _without_spare(bought, knowledge, now, cost)
        yield Option(index, kept, sum(map(cost, kept), Cost()), knowledge.after(kept))


def _without_spare(
    bought: Sequence[tuple[Run, ...]], knowledge: Knowledge, now: Uncertainty, cost: Callable[[Run], Cost]
) -> tuple[Run, ...]:
    """The runs without the cheapest blocks that together teach next to nothing beside the others."""
    kept = list(bought)
    for block in sorted(bought, key=lambda b: cost(b[0]).flops):
        rest = [b for b in kept if b is not block]
        if rest and _gain(knowledge.after(r for b in rest for r in b), now) <= SPARE:
            kept = rest
    return tuple(r for b in kept for r in b)


def _gain(now: Uncertainty, then: Uncertainty) -> float:
    fall = math.log(excess(now.lr, now.batch) / excess(then.lr, then.batch))
    return fall + LOSS_WEIGHT * 2.0 * math.log(now.loss / then.loss)


def _blocks(cell: Cell, schedule: str) -> Iterator[tuple[Run, ...]]:
    """One run that finds its lr; the other batches; three runs of a schedule."""
    own = [Run(cell.size, cell.tokens, b) for b in cell.batches]
    yield (own[0],)
    if len(own) > 1:
        yield tuple(own[1:])
    yield (Run(cell.size, cell.tokens, cell.batches[0], schedule),) * 3


def _may_follow(block: tuple[Run, ...], runs: Sequence[Run], seeds: int) -> bool:
    """Each run that finds its lr once a seed; other batches after the usual one; schedules up to `SCHEDULED`."""
    if block[0].strategy != SELF_TUNING:
        return sum(1 for r in runs if r == block[0]) + len(block) * seeds <= SCHEDULED * seeds
    if block[0] in runs:
        return False
    here = (block[0].size, block[0].tokens)
    return len(block) == 1 or any((r.size, r.tokens) == here for r in runs)
