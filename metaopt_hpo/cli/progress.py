"""Progress of a comparison on the terminal: a bar with time left, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from metaopt_hpo.comparison.design import ComparisonPlan
from metaopt_hpo.comparison.objective import Configuration, Objective
from metaopt_hpo.trials.record import TrialRecord


class ComparisonProgress:
    """Call it with (study, record) after each trial; progress is counted in FLOPs, so that time left is fair.

    Args:
        plan: what will be run.
        objective: says what a run costs.
        console: where to write (default: standard error, so that results can be piped).
    """

    def __init__(self, plan: ComparisonPlan, objective: Objective, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._total = expected_cost(plan, objective)
        self._done = 0.0
        self._start = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        self._task = self._bar.add_task("comparing", total=self._total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, study: str, record: TrialRecord) -> None:
        self._done += record.cost if record.cost == record.cost else 0.0
        line = f"{study:<24} lr {record.lr:<9.3g} {record.state:<9} loss {record.loss:.4f}"
        if self._bar.disable:
            share = min(1.0, self._done / self._total)
            left = (time.monotonic() - self._start) * (1 - share) / share if share > 0 else 0.0
            self._console.print(
                f"{share:4.0%}  {line}  about {left:.0f} s left",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        else:
            assert self._task is not None  # __enter__ made it
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
            self._bar.update(self._task, completed=min(self._done, self._total))


def expected_cost(plan: ComparisonPlan, objective: Objective) -> float:
    """FLOPs the plan may spend: every method's budget, a law's pilots inside its own."""

    def run(size: float) -> float:
        low = plan.lr_bounds[0]
        return objective.cost(
            Configuration(size=size, tokens=plan.tokens, batch=plan.batch, lr=low, strategy=plan.strategy)
        )

    return len(plan.seeds) * len(plan.methods) * plan.runs * run(plan.size)
