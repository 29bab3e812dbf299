"""Law-guided searches, which ask `scaling.policy` again and again.

`law_search` races: it chooses pilots and runs of the target. `TargetSearch` is a comparison's method, whose pilots have
been run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from metaopt_hpo.comparison.engine import EngineError, SearchTask
from metaopt_hpo.scaling import LawRefused, fit
from metaopt_hpo.scaling.policy import Context, propose_at, propose_next, runs_of
from metaopt_hpo.scaling.policy.points import Runs, fitted_bowl
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable


def law_search(task: SearchTask) -> Iterator[TrialRecord]:
    """Records of the pilots and of the target's runs, one after the other; never ends on its own.

    Args:
        task: a race.
    """
    context = Context(
        target=task.target,
        candidates=(*task.pilots, task.target),
        lr=task.box["lr"],
        batch=task.box["batch"],
        base=task.base,
        seed=task.seed,
    )
    rows: list[tuple[float, float, float, float, float]] = []
    while True:
        wanted = propose_next(Runs.of(rows), context).config
        cell = (wanted.size, wanted.tokens)
        record = task.objective.run(task.configuration(wanted.lr, cell=cell, batch=wanted.batch))
        # a table runs the nearest configuration that it knows
        rows.append((*cell, record.batch, record.lr, record.loss))
        yield record


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
        self._bowl = fitted_bowl(self._evidence, law)
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
