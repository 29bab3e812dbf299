"""Searches of a comparison, one after another or several at once, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from metaopt_hpo.comparison.engine import SearchEngine, SearchTask
from metaopt_hpo.comparison.methods import method as method_named
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.workers import worker_pool

Progress = Callable[[str, TrialRecord], None]
"""Called with a study's name and the record of a trial that has ended."""


@dataclass(frozen=True)
class Job:
    """One search: a method on a task, under the name of its study."""

    method: str
    task: SearchTask
    study: str


class Runner:
    """Runs jobs in this process or in several, and passes progress on."""

    def __init__(
        self,
        store: str,
        engine: SearchEngine,
        threads: int,
        progress: Progress | None,
    ) -> None:
        self._store = store
        self._engine = engine
        self._threads = threads
        self._progress = progress

    def all(self, jobs: list[Job], workers: int) -> dict[str, list[TrialRecord]]:
        """Records of every job by study name; the first error is raised after the others have stopped."""
        if workers == 1 or len(jobs) < 2:
            return {
                job.study: _search(self._engine, job, self._store, self._threads, self._progress)
                for job in jobs
            }
        with _shared(self._engine, min(workers, len(jobs)) * self._threads):
            return self._in_processes(jobs, workers)

    def _in_processes(self, jobs: list[Job], workers: int) -> dict[str, list[TrialRecord]]:
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


def _search_in_worker(engine: SearchEngine, job: Job, store: str, threads: int) -> list[TrialRecord]:
    return _search(engine, job, store, threads, lambda study, record: _messages.put((study, record)))


def _search(
    engine: SearchEngine, job: Job, store: str, threads: int, progress: Progress | None
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
