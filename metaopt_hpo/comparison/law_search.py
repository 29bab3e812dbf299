"""Law-guided search for (lr, batch) at a target size, as a generator: `scaling.policy` asked again and again.

It is sent the loss of each configuration, so that it runs on tables and on real training alike.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from metaopt_hpo.scaling.policy import Config, Context, propose_next
from metaopt_hpo.scaling.proposing import Bounds, Runs


@dataclass(frozen=True)
class LawSearchTask:
    """What is searched: a target, the pilot cells that may be run, and bounds."""

    target: tuple[float, float]
    pilots: tuple[tuple[float, float], ...]
    lr: Bounds
    batch: Bounds
    seed: int = 0


def law_search(task: LawSearchTask) -> Generator[Config, tuple[Config, float], None]:
    """Configurations to run; send (what was run, its loss) for each. Never ends on its own.

    What was run may differ from what was proposed (a table knows only what lies between its runs).
    """
    context = Context(
        target=task.target,
        candidates=(*task.pilots, task.target),
        lr=task.lr,
        batch=task.batch,
        seed=task.seed,
    )
    rows: list[tuple[float, float, float, float, float]] = []
    while True:
        ran, loss = yield propose_next(Runs.of(rows), context).config
        rows.append((ran.size, ran.tokens, ran.batch, ran.lr, loss))
