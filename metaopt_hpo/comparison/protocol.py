"""compare(): methods at equal compute — who may spend how much, what counts, and where it is kept.

Equal compute means equal FLOPs: every method gets, for each seed, the cost of `runs` full runs at the target
size. Failed, diverged and pruned trials count for what they used, and a law pays for the smaller models it
learned from. Methods meet on common random numbers: with the same seed, every trial starts from the same
weights and sees the same batches.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import platform
import queue
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import from_json

from metaopt_hpo.atomic import WriteError, write_text
from metaopt_hpo.comparison.engine import SearchEngine, SearchTask, get_engine
from metaopt_hpo.comparison.methods import method as method_named
from metaopt_hpo.comparison.objective import Checkable, Objective
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.locks import only_process
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo.workers import worker_pool

PLAN_FILE = "plan.json"
TABLE_FILE = "trials.parquet"
STORE_FILE = "trials.sqlite"
LOCK_FILE = "compare.lock"
PILOT = "pilot"
FORMAT_VERSION = 1


class CompareError(MetaOptError):
    """A comparison cannot be run, resumed or read."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared. Saved as JSON beside the results, so that they can be resumed and reproduced.

    Args:
        workload: name of the objective.
        methods: names of the search methods.
        seeds: each method is run once for each.
        size: the target size; pilots are run at `pilot_sizes`, all smaller.
        tokens, batch: of every run.
        lr_bounds: the range external methods search.
        runs: budget of each (method, seed), in full runs at the target size.
        pilot_runs: learning rates tried at each pilot size.
        strategy: schedule whose lr external methods search.
        engine: name of the engine.

    Examples:
        >>> from metaopt_hpo import ComparisonPlan
        >>> plan = ComparisonPlan(
        ...     workload="text-lm", methods=("grid", "metaoptimize"), seeds=(0, 1, 2), size=1e6, pilot_sizes=(),
        ...     tokens=1e8, batch=1e4, lr_bounds=(1e-3, 1e-1), runs=5, pilot_runs=1,
        ... )
        >>> plan.engine
        'optuna'
        >>> ComparisonPlan.from_json(plan.to_json()) == plan
        True
    """

    workload: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    size: float
    pilot_sizes: tuple[float, ...]
    tokens: float
    batch: float
    lr_bounds: tuple[float, float]
    runs: int
    pilot_runs: int
    strategy: str = "wsd"
    engine: str = "optuna"

    def __post_init__(self) -> None:
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise ValueError(f"methods must be at least one and distinct, got {self.methods!r}")
        for name in self.methods:
            method_named(name)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be at least one and distinct, got {self.seeds!r}")
        low, high = self.lr_bounds
        if not 0 < low < high:
            raise ValueError(f"lr_bounds must be 0 < low < high, got {self.lr_bounds!r}")
        for field in ("runs", "pilot_runs"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)!r}")
        for field, values in (
            ("size", [self.size]),
            ("tokens", [self.tokens]),
            ("batch", [self.batch]),
            ("pilot_sizes", self.pilot_sizes),
            ("lr_bounds", self.lr_bounds),
        ):
            if not all(0 < v < math.inf for v in values):
                raise ValueError(f"{field} must be finite and > 0, got {getattr(self, field)!r}")
        if any(s >= self.size for s in self.pilot_sizes):
            raise ValueError(
                f"pilot sizes must be below the target size {self.size:g}, got {self.pilot_sizes!r}"
            )
        if "law" in self.methods and len(self.pilot_sizes) < 3:
            raise ValueError(
                f"method 'law' fits a law to smaller models and needs at least three pilot sizes, "
                f"got {len(self.pilot_sizes)}"
            )

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self.__dict__.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """From `to_json`.

        Raises:
            ValueError: a field is missing, of a wrong type, or out of range.
        """
        text = json.dumps({k: v for k, v in data.items() if k in cls.__dataclass_fields__})
        return TypeAdapter(cls).validate_json(text, strict=True)


ComparisonPlan = Plan
"""What the package's face calls it, where `Plan` is the plan of pilots."""


@dataclass(frozen=True)
class Comparison:
    """A finished or interrupted comparison: its plan, its trials, and the machine it ran on.

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
        >>> sorted(comparison.table.frame["method"].unique())
        ['grid', 'random']
        >>> type(comparison).read("results").plan == plan
        True
    """

    plan: Plan
    table: TrialTable
    machine: dict[str, str]
    command: str = ""

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Comparison:
        """Read a results folder.

        Raises:
            CompareError: it holds no comparison, or one of a newer version.
        """
        path = Path(folder)
        saved = _read_plan(path)
        if saved is None or not (path / TABLE_FILE).exists():
            raise CompareError(f"{path} holds no finished comparison; run: metaopt-hpo compare --out {path}")
        try:
            plan = Plan.from_json(saved.plan)
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CompareError(f"the plan in {path} is damaged ({reason}); restore {PLAN_FILE}") from error
        return cls(
            plan,
            TrialTable.read(path / TABLE_FILE),
            saved.machine,
            saved.command,
        )


@dataclass(frozen=True)
class _Job:
    method: str
    task: SearchTask
    study: str


Progress = Callable[[str, TrialRecord], None]


def compare(
    objective: Objective,
    plan: Plan,
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
        CompareError: the folder cannot be written, or holds another plan.
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
        _claim(folder, plan, command)
        table = _run(folder, plan, engine, objective, workers, threads, progress)
    return Comparison(plan, table, machine(), command)


def _run(
    folder: Path,
    plan: Plan,
    engine: SearchEngine,
    objective: Objective,
    workers: int,
    threads: int,
    progress: Progress | None,
) -> TrialTable:
    run = _Runner(folder, engine, objective, threads, progress)
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


def _pilot_jobs(plan: Plan, objective: Objective) -> list[_Job]:
    jobs = []
    for size in plan.pilot_sizes:
        for seed in plan.seeds:
            task = _task(plan, objective, size, seed, plan.pilot_runs)
            jobs.append(_Job("grid", task, f"{PILOT}/{size:.0f}/seed{seed}"))
    # the dearest first, so that no long job is left alone at the end
    return sorted(jobs, key=lambda j: -j.task.budget)


def _target_job(
    plan: Plan, objective: Objective, name: str, seed: int, evidence: Sequence[TrialRecord] = ()
) -> _Job:
    task = _task(plan, objective, plan.size, seed, plan.runs)
    return _Job(name, replace(task, evidence=tuple(evidence)), f"{name}/seed{seed}")


def _task(plan: Plan, objective: Objective, size: float, seed: int, runs: int) -> SearchTask:
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


class _Runner:
    """Runs jobs in this process or in several, and passes progress on."""

    def __init__(
        self,
        folder: Path,
        engine: SearchEngine,
        objective: Objective,
        threads: int,
        progress: Progress | None,
    ) -> None:
        self._store = str(folder / STORE_FILE)
        self._engine = engine
        self._threads = threads
        self._progress = progress

    def all(self, jobs: list[_Job], workers: int) -> dict[str, list[TrialRecord]]:
        """Records of every job by study name; the first error is raised after the others have stopped."""
        if workers == 1 or len(jobs) < 2:
            return {
                job.study: _search(self._engine, job, self._store, self._threads, self._progress)
                for job in jobs
            }
        with _shared(self._engine, min(workers, len(jobs)) * self._threads):
            return self._in_processes(jobs, workers)

    def _in_processes(self, jobs: list[_Job], workers: int) -> dict[str, list[TrialRecord]]:
        messages: Any = multiprocessing.get_context("spawn").Queue()
        # finished trials are in the store; what runs is stopped, and goes on from its checkpoint on resume
        with worker_pool(min(workers, len(jobs)), _start_worker, (messages,)) as pool:
            futures: dict[Future[list[TrialRecord]], str] = {
                pool.submit(_search_in_worker, self._engine, job, self._store, self._threads): job.study
                for job in jobs
            }
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                self._drain(messages)
                for future in done:
                    future.result()
            self._drain(messages)
            return {study: future.result() for future, study in futures.items()}

    def _drain(self, messages: Any) -> None:
        while True:
            try:
                study, record = messages.get_nowait()
            except queue.Empty:
                return
            if self._progress is not None:
                self._progress(study, record)


def _shared(engine: SearchEngine, cpus: int) -> AbstractContextManager[Any]:
    """What the engine's searches in several processes have in common, where it has such a thing: a cluster."""
    share = getattr(engine, "shared", None)
    return nullcontext() if share is None else share(cpus)


_messages: Any = None


def _start_worker(messages: Any) -> None:
    global _messages
    _messages = messages


def _search_in_worker(engine: SearchEngine, job: _Job, store: str, threads: int) -> list[TrialRecord]:
    return _search(engine, job, store, threads, lambda study, record: _messages.put((study, record)))


def _search(
    engine: SearchEngine, job: _Job, store: str, threads: int, progress: Progress | None
) -> list[TrialRecord]:
    import torch

    torch.set_num_threads(threads)
    return engine.search(
        method_named(job.method),
        job.task,
        store=store,
        study=job.study,
        progress=None if progress is None else lambda record: progress(job.study, record),
    )


def _claim(folder: Path, plan: Plan, command: str) -> None:
    saved = _read_plan(folder)
    if saved is not None and saved.plan != plan.to_json():
        changed = sorted(k for k, v in plan.to_json().items() if saved.plan.get(k) != v)
        raise CompareError(
            f"{folder} holds a comparison with other {', '.join(changed)}; "
            "choose another --out, or repeat the options it was started with"
        )
    content = {"version": FORMAT_VERSION, "plan": plan.to_json(), "machine": machine(), "command": command}
    try:
        write_text(folder / PLAN_FILE, json.dumps(content, indent=2))
    except WriteError as error:
        raise CompareError(f"cannot write to results folder {folder}: {error}") from error


class _Saved(BaseModel):
    """What plan.json holds."""

    model_config = ConfigDict(strict=True)
    version: int
    plan: dict[str, Any]
    machine: dict[str, str]
    command: str = ""


def _read_plan(folder: Path) -> _Saved | None:
    path = folder / PLAN_FILE
    try:
        saved = from_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise CompareError(f"{path} cannot be read: {error}") from error
    if not isinstance(saved, dict) or not {"version", "plan", "machine"} <= saved.keys():
        raise CompareError(f"{path} is not a plan of metaopt-hpo; choose another folder")
    if isinstance(saved["version"], int) and saved["version"] > FORMAT_VERSION:
        raise CompareError(
            f"{folder} was written by a newer version of metaopt-hpo; upgrade it to read the results"
        )
    try:
        return _Saved.model_validate(saved)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CompareError(
            f"{path} is damaged ({where}: {first['msg']}); restore it, or choose another folder"
        ) from None


def machine() -> dict[str, str]:
    """Versions and machine of this process, for reports."""
    versions = {}
    for package in ("metaopt-hpo", "torch", "optuna", "numpy", "pandas", "scipy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": str(os.cpu_count()),
        **versions,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
