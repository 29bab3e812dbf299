"""The runs of a study's table, found by what they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable
from studies.one_run.cases import ONE_RUN, WATCHED, Case, Cell, Options, single, started


class Results:
    """The table's runs, by case, strategy, lr, options and seed."""

    def __init__(self, table: TrialTable) -> None:
        self.records = {r.trial: r for r in table.records()}

    def run(self, case: Case, strategy: str, seed: int, lr: float | None = None, **options: object) -> float:
        """Held-out loss of a run; inf where it failed or diverged, NaN where it has not been run."""
        record = self.record(case, strategy, seed, lr, **options)
        if record is None:
            return math.nan
        return record.loss if record.state == "complete" and math.isfinite(record.loss) else math.inf

    def record(
        self, case: Case, strategy: str, seed: int, lr: float | None = None, **options: object
    ) -> TrialRecord | None:
        """The record of a run, or None."""
        cell = Cell(case=case, strategy=strategy, seed=seed, lr=lr, options=options)  # type: ignore[arg-type]
        return self.records.get(cell.key)

    def own(self, case: Case, seed: int, changed: Options | None = None) -> TrialRecord | None:
        """The single run of MetaOptimize as it comes, with what the workload recommends and `changed`, or None."""
        (cell,) = single(case, seed, (ONE_RUN,), changed)
        return self.records.get(cell.key)

    def watched(self, case: Case, seed: int) -> list[tuple[float, TrialRecord]]:
        """(start, record) of the runs whose step size was followed, from the lowest start."""
        cells = started(case, seed, WATCHED)
        return [(c.lr, r) for c in cells if c.lr is not None and (r := self.records.get(c.key)) is not None]

    def seeds(self) -> tuple[int, ...]:
        """All seeds in the table."""
        return tuple(sorted({r.seed for r in self.records.values()}))


def losses(results: Results, case: Case, schedules: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
    """Losses of tuned runs, (schedules × learning rates, seeds)."""
    return np.array(
        [[results.run(case, name, s, lr) for s in seeds] for name in schedules for lr in case.grid]
    )
