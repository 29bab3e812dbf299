"""compare(): methods at equal compute — who may spend how much, what counts, and where it is kept.

Equal compute means equal FLOPs: every method gets, for each seed, the cost of `runs` full runs at the target
size. Failed, diverged and pruned trials count for what they used, and a law pays for the smaller models it
learned from. Methods meet on common random numbers: with the same seed, every trial starts from the same
weights and sees the same batches.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from metaopt_hpo.comparison.design import ComparisonPlan
from metaopt_hpo.comparison.engine import SearchEngine, SearchTask, get_engine
from metaopt_hpo.comparison.jobs import Job, Progress, Runner
from metaopt_hpo.comparison.objective import Checkable, Objective
from metaopt_hpo.comparison.results import (
    LOCK_FILE,
    PILOT,
    STORE_FILE,
    TABLE_FILE,
    CompareError,
    Comparison,
    claim,
    machine,
)
from metaopt_hpo.locks import only_process
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable


def compare(
    objective: Objective,
    plan: ComparisonPlan,
    out: str | os.PathLike[str],
    *,
    workers: int | None = None,
    threads: int = 1,
    progress: Progress | None = None,
    command: str = "",
) -> Comparison:
    """Run the plan, or what is left of it, and write `plan.json` and `trials.parquet` to `out`.

    Args:
        objective: what is run.
        plan: what is compared.
        out: results folder; one that holds the same plan is resumed, nothing finished is run again.
        workers: searches run at once, each in a process of its own (default: CPUs / threads).
        threads: torch threads of each; results are deterministic for a given number.
        progress: called with (study, record) after each trial.
        command: how the comparison was started, for the report.

    Raises:
        CompareError: the folder cannot be written or holds another plan, or the plan is none of a comparison.
        UnknownStrategy: there is no strategy of the plan's name.
        ObjectiveUnavailable: what its runs need is missing, and nothing has begun.

    Examples:
        >>> from metaopt_hpo import ComparisonPlan, TrialRecord, TrialTable, compare
        >>> from metaopt_hpo.comparison.table_objective import TableObjective
        >>> runs = TrialTable.from_records(
        ...     TrialRecord(size=1e6, tokens=1e8, batch=1e4, lr=x, loss=3 + 1e4 * (x - 4e-3) ** 2)
        ...     for x in (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
        ... )
        >>> plan = ComparisonPlan(
        ...     workload="table", methods=("grid", "random"), seeds=(0,), size=1e6, pilot_sizes=(), tokens=1e8,
        ...     batch=1e4, lr_bounds=(1e-3, 1.6e-2), runs=4, pilot_runs=1,
        ... )
        >>> comparison = compare(TableObjective(runs), plan, "results", workers=1)
        >>> comparison.table.frame.groupby("method")["loss"].min().round(2).to_dict()
        {'grid': 3.03, 'random': 3.0}
    """
    from metaopt_hpo.strategies import get as get_strategy

    if not isinstance(plan, ComparisonPlan):
        raise CompareError(
            f"compare() takes a ComparisonPlan, got {type(plan).__name__}: a plan of pilots is run by its own run()"
        )
    folder = Path(out)
    get_strategy(plan.strategy)
    engine = get_engine(plan.engine)
    missing = [m for m in plan.methods if m not in engine.methods]
    if missing:
        raise CompareError(
            f"engine {plan.engine!r} has no method {missing[0]!r}; it has {', '.join(sorted(engine.methods))}"
        )
    if isinstance(objective, Checkable):
        objective.check()
    workers = workers or max(1, (os.cpu_count() or 1) // threads)
    with _only_comparison(folder):
        claim(folder, plan, command)
        table = _run(folder, plan, engine, objective, workers, threads, progress)
    return Comparison(plan, table, machine(), command)


def _run(
    folder: Path,
    plan: ComparisonPlan,
    engine: SearchEngine,
    objective: Objective,
    workers: int,
    threads: int,
    progress: Progress | None,
) -> TrialTable:
    run = Runner(str(folder / STORE_FILE), engine, threads, progress)
    pilot_jobs = _pilot_jobs(plan, objective)
    target_jobs = [(name, seed) for name in plan.methods for seed in plan.seeds]
    # laws wait for their pilots; everything else can fill the machine meanwhile
    first = pilot_jobs + [_target_job(plan, objective, m, s) for m, s in target_jobs if m != "law"]
    records = run.all(first, workers)
    pilots = [replace(r, method=PILOT) for job in pilot_jobs for r in records[job.study]]
    last = [
        _target_job(plan, objective, m, s, evidence=[p for p in pilots if p.seed == s])
        for m, s in target_jobs
        if m == "law"
    ]
    records |= run.all(last, workers)
    ordered = pilots + [r for m, s in target_jobs for r in records[f"{m}/seed{s}"]]
    table = TrialTable.from_records(ordered)
    table.write(folder / TABLE_FILE)
    return table


@contextmanager
def _only_comparison(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CompareError(
            f"cannot write to results folder {folder}: {error.strerror}; choose another --out"
        ) from error
    with only_process(folder / LOCK_FILE, f"results folder {folder}"):
        yield


def _pilot_jobs(plan: ComparisonPlan, objective: Objective) -> list[Job]:
    jobs = []
    for size in plan.pilot_sizes:
        for seed in plan.seeds:
            task = _task(plan, objective, size, seed, plan.pilot_runs)
            jobs.append(Job("grid", task, f"{PILOT}/{size:.0f}/seed{seed}"))
    # the dearest first, so that no long job is left alone at the end
    return sorted(jobs, key=lambda j: -j.task.budget)


def _target_job(
    plan: ComparisonPlan, objective: Objective, name: str, seed: int, evidence: Sequence[TrialRecord] = ()
) -> Job:
    task = _task(plan, objective, plan.size, seed, plan.runs)
    return Job(name, replace(task, evidence=tuple(evidence)), f"{name}/seed{seed}")


def _task(plan: ComparisonPlan, objective: Objective, size: float, seed: int, runs: int) -> SearchTask:
    task = SearchTask(
        objective=objective,
        size=size,
        tokens=plan.tokens,
        batch=plan.batch,
        lr_bounds=plan.lr_bounds,
        budget=0.0,
        seed=seed,
        strategy=plan.strategy,
    )
    return replace(task, budget=runs * objective.cost(task.configuration(plan.lr_bounds[0])))
