"""Runs the cells of a study in several processes, keeps every finished one at once, and goes on where it stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import replace
from itertools import islice
from pathlib import Path

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.locks import only_process
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo.workers import worker_pool
from studies.one_run.cases import Cell, StudyError

TABLE_FILE = "study.parquet"
STUDY = "one-run"

Progress = Callable[[int, int, TrialRecord], None]


def read(out: str | os.PathLike[str]) -> TrialTable:
    """The trials kept so far.

    Raises:
        StudyError: there are none.
    """
    path = table_path(out)
    if not path.exists():
        raise StudyError(
            f"there is no study in {path.parent}; run: python -m studies.one_run --out {path.parent}"
        )
    return TrialTable.read(path)


def table_path(out: str | os.PathLike[str]) -> Path:
    """The table's file: `out` itself where it is one, else the usual name in that folder."""
    path = Path(out)
    return path if path.suffix == ".parquet" else path / TABLE_FILE


def run(
    cells: Sequence[Cell],
    out: str | os.PathLike[str],
    *,
    workers: int | None = None,
    minutes: float | None = None,
    progress: Progress | None = None,
) -> TrialTable:
    """Run what is not there yet, in order, and return the table.

    Each is on the disk before `progress` is told of it. Runs that fail or diverge are kept with their reason, and
    are not repeated. Cases whose data are not on this machine are left out, with a failed trial that says why, and
    are tried again next time.

    Args:
        cells: the design.
        out: folder, or Parquet file, of the results.
        workers: processes, one thread each (default: CPUs).
        minutes: start no further run after so long; None runs everything.
        progress: called with (done, all, record).
    """
    path = table_path(out)
    with only_process(path.with_name(path.name + ".lock"), f"the study {path}"):
        return _run(cells, path, workers or os.cpu_count() or 1, minutes, progress)


def _run(
    cells: Sequence[Cell], path: Path, workers: int, minutes: float | None, progress: Progress | None
) -> TrialTable:
    kept = [r for r in TrialTable.read(path).records() if r.reason != NO_DATA] if path.exists() else []
    have = {r.trial for r in kept}
    todo = [cell for cell in cells if cell.key not in have]
    place = {cell.key: i for i, cell in enumerate(cells)}
    done = len(cells) - len(todo)
    stop = None if minutes is None else time.monotonic() + 60 * minutes
    with worker_pool(max(1, min(workers, len(todo)))) as pool:
        waiting = iter(todo)
        pending = {pool.submit(run_cell, cell) for cell in islice(waiting, 2 * workers)}
        while pending:
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            ended = [future.result() for future in finished if future.exception() is None]
            if ended:
                # in the order of the design, so that the table does not tell who was faster; all that ended
                # meanwhile at once, so that a large table is not written more often than it can be
                kept = sorted([*kept, *ended], key=lambda r: place.get(r.trial, -1))
                TrialTable.from_records(kept, warn=False).write(path)
            for record in ended:
                done += 1
                if progress is not None:
                    progress(done, len(cells), record)
            for future in finished:
                future.result()  # raises what ended a worker, once the others' runs are kept
                if stop is None or time.monotonic() < stop:
                    pending |= {pool.submit(run_cell, cell) for cell in islice(waiting, 1)}
    if not kept:
        raise StudyError("the study has no finished run yet; give it more minutes")
    return TrialTable.from_records(kept)


NO_DATA = "the data of this case are not on this machine"


def run_cell(cell: Cell) -> TrialRecord:
    """Train one cell; never raises for what a strategy or a workload refuses, whose record says so."""
    import torch

    from metaopt_hpo.strategies import make
    from metaopt_hpo.workloads.base import WorkloadError, scores, train

    torch.set_num_threads(1)
    params = {"case": cell.case.name, **dict(cell.options)}
    named = {"trial": cell.key, "study": STUDY, "method": cell.strategy, "engine": "study"}
    missing = TrialRecord(
        size=1.0,
        tokens=1.0,
        batch=1.0,
        lr=cell.lr or 1.0,
        loss=float("nan"),
        workload=cell.case.workload,
        strategy=cell.strategy,
        state="failed",
        seed=cell.seed,
        params=params,
        trial=cell.key,
        study=STUDY,
    )
    try:
        job = cell.case.job()
        if hasattr(job, "images"):
            job.images()
    except WorkloadError:
        return replace(missing, reason=NO_DATA)
    tokens = cell.case.steps * job.batch
    try:
        strategy = make(cell.strategy, **cell.strategy_options())
        run = train(job, strategy, tokens=tokens, seed=cell.seed, reports=cell.reports)
    except (MetaOptError, ValueError, RuntimeError) as error:
        return replace(
            missing, size=float(job.size), tokens=float(tokens), batch=float(job.batch), reason=str(error)
        )
    found = {} if run.state == "diverged" else scores(job, run)
    kept = {k: v for k, v in found.items() if "task" not in k}
    guard = getattr(run.lr_run, "guard", None)
    if guard is not None and guard.total:
        kept["brought_back"] = guard.total
    return run.record(params={**params, **kept}, **named)
