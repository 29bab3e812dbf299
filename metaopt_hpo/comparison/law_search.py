"""Law-guided searches, which ask `scaling.policy` again and again.

`law_search` chooses pilots and runs of the target; `TargetSearch` is a comparison's method, whose pilots have been run.
Both are sent the loss of each configuration, so that they run on tables and on real training alike.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from metaopt_hpo.comparison.engine import EngineError, SearchTask
from metaopt_hpo.scaling import LawRefused, fit
from metaopt_hpo.scaling.base.sources import BaseLike
from metaopt_hpo.scaling.policy import Config, Context, propose_at, propose_next, runs_of
from metaopt_hpo.scaling.policy.points import Bounds, Runs, bowl_of
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable


@dataclass(frozen=True)
class LawSearchTask:
    """What is searched: a target, the pilot cells that may be run, and bounds; `base` as in `fit`."""

    target: tuple[float, float]
    pilots: tuple[tuple[float, float], ...]
    lr: Bounds
    batch: Bounds
    seed: int = 0
    base: BaseLike | Sequence[BaseLike] | None = None


def law_search(task: LawSearchTask) -> Generator[Config, tuple[Config, float], None]:
    """Configurations to run; send (what was run, its loss) for each. Never ends on its own.

    What was run may differ from what was proposed (a table knows only what lies between its runs).
    """
    context = Context(
        target=task.target,
        candidates=(*task.pilots, task.target),
        lr=task.lr,
        batch=task.batch,
        base=task.base,
        seed=task.seed,
    )
    rows: list[tuple[float, float, float, float, float]] = []
    while True:
        ran, loss = yield propose_next(Runs.of(rows), context).config
        rows.append((ran.size, ran.tokens, ran.batch, ran.lr, loss))


class TargetSearch:
    """Learning rates at a task's size: the optimum of the evidence's law, then where the task's own runs leave it.

    Raises:
        EngineError: the task has no evidence, or its evidence bears no law.
    """

    def __init__(self, task: SearchTask) -> None:
        if not task.evidence:
            raise EngineError(
                "method 'law' needs trials of smaller models as evidence; give pilot sizes to compare"
            )
        table = TrialTable.from_records(task.evidence)
        try:
            law = fit(table, allow_weak=True, seed=task.seed)
        except LawRefused as error:
            raise EngineError(f"method 'law': the smaller models give no law: {error.reason}") from error
        self._evidence = runs_of(table)
        self._bowl = bowl_of(self._evidence, law)
        self._target = (float(task.size), float(task.tokens))
        batch = float(task.batch)
        self._context = Context(
            target=self._target,
            candidates=(self._target,),
            lr=task.lr_bounds,
            batch=(batch, batch),
            seed=task.seed,
        )

    def propose(self, own: Sequence[TrialRecord], running: int = 0) -> float:
        """The next lr.

        Args:
            own: the task's runs so far; one without a final loss counts and teaches nothing.
            running: how many more are under way.
        """
        rows = [(*self._target, r.batch, r.lr, r.loss if r.state == "complete" else math.nan) for r in own]
        runs = (self._evidence + Runs.of(rows)).with_unfinished(self._target, running)
        return propose_at(runs, self._target, self._context, bowl=self._bowl).lr
