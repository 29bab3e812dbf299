"""A parabola in ln lr as an objective, and an engine that keeps its studies in a dict: for tests only."""

import math
from dataclasses import replace

from metaopt_hpo.comparison.engine import SearchTask
from metaopt_hpo.comparison.methods import Method, grid_points, starts
from metaopt_hpo.comparison.objective import Configuration, no_report
from metaopt_hpo.trials.record import TrialRecord


class Parabola:
    """loss = floor(size) · (1 + 0.02 · ln²(lr / lr*(size))), lr* ~ size^-0.5, with a seed's own offset."""

    name = "parabola"
    sizes = (1e3, 1e4, 1e5, 1e6)

    def best_lr(self, size: float) -> float:
        return 1e-2 * (size / 1e4) ** -0.25

    def cost(self, configuration: Configuration) -> float:
        return 6 * configuration.size * configuration.tokens

    def run(self, configuration: Configuration, report=no_report) -> TrialRecord:  # type: ignore[no-untyped-def]
        c = configuration
        lr = self.best_lr(c.size) * 0.9 if c.strategy == "metaoptimize" else c.lr
        floor = 3 * (c.size / 1e4) ** -0.05 + 0.001 * c.seed
        return TrialRecord(
            size=c.size,
            tokens=c.tokens,
            batch=c.batch,
            lr=c.lr,
            strategy=c.strategy,
            seed=c.seed,
            loss=floor * (1 + 0.02 * math.log(lr / self.best_lr(c.size)) ** 2),
            cost=self.cost(c),
            target_tokens=c.tokens,
            workload=self.name,
            found_lr=lr if c.strategy == "metaoptimize" else math.nan,
        )


class DictEngine:
    """Grid and MetaOptimize over a dict of finished trials; dies after `dies_after` trials, if given."""

    name = "dict"
    methods = frozenset({"grid", "metaoptimize", "law"})

    def __init__(self, dies_after: int | None = None) -> None:
        self.studies: dict[str, list[TrialRecord]] = {}
        self.runs = 0
        self.dies_after = dies_after

    def search(
        self, method: Method, task: SearchTask, *, store=None, study: str, progress=None
    ) -> list[TrialRecord]:  # type: ignore[no-untyped-def]
        done = self.studies.setdefault(study, [])
        each = task.objective.cost(task.configuration(1.0))
        count = int(task.budget / each + 1e-9)
        if method.kind == "law":
            # what is left after the pilots, at the rate of the best of the largest pilot
            count = int((task.budget - sum(e.cost for e in task.evidence)) / each + 1e-9)
            largest = max(e.size for e in task.evidence)
            points = iter(
                [min((e for e in task.evidence if e.size == largest), key=lambda e: e.loss).lr] * count
            )
        else:
            points = starts(1e-3) if method.strategy else iter(grid_points(*task.lr_bounds, count))
        for i, lr in zip(range(count), points, strict=False):
            if i >= len(done):
                if self.dies_after is not None and self.runs >= self.dies_after:
                    raise KeyboardInterrupt
                self.runs += 1
                record = task.objective.run(task.configuration(lr, strategy=method.strategy))
                done.append(replace(record, trial=str(i), study=study, method=method.name, engine=self.name))
            if progress is not None:
                progress(done[i])
        return done[:count]
