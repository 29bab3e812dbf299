"""RayEngine: runs the methods of a comparison on any objective as Tune experiments, at equal FLOPs.

One search is one experiment folder with a journal. A search that was interrupted goes on from its journal:
nothing finished is run again, and what was running counts as failed with what it had spent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from metaopt_hpo.comparison.engine import EngineError, Progress, SearchTask, check_method
from metaopt_hpo.comparison.methods import Method
from metaopt_hpo.comparison.populations import METHODS as TOGETHER
from metaopt_hpo.comparison.populations import Plan, plan
from metaopt_hpo.trials.logged_results import METRIC
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo_ray import populations, race
from metaopt_hpo_ray.cluster import quiet, start_ray, threads_here
from metaopt_hpo_ray.configs import SAFE_FOR_PBT
from metaopt_hpo_ray.journal_callback import JournalCallback
from metaopt_hpo_ray.proposers import METHODS, BudgetSearch, make_proposer, make_scheduler
from metaopt_hpo_ray.search_folder import Own, claim, finished, folder_of
from metaopt_hpo_ray.trainables import halted_run, whole_run


class RayEngine:
    """Runs grid, random, TPE, median, Hyperband, ASHA, PBT, PB2, MetaOptimize and law-guided search with Tune.

    Bayesian search is Tune's own OptunaSearch and stopping its own schedulers, so that a comparison shows what
    a Ray user has today. "hyperband" is the asynchronous one with three brackets. "hyperband-sync", "pbt" and
    "pb2" halt trials and go on with them, which an objective must be able to do (`comparison.live`); PBT and PB2
    change the learning rate midway as well, which a table has no run of.

    Args:
        concurrency: trials of one search that run at once (default 1: then a search is a function of its
            seed). Model-based methods see fewer results before each proposal with more.

    Examples:
        >>> from metaopt_hpo.comparison.engine import get_engine
        >>> type(get_engine("ray")).__name__
        'RayEngine'
    """

    name = "ray"

    def __init__(self, *, concurrency: int = 1) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {concurrency!r}")
        self._concurrency = concurrency

    @property
    def methods(self) -> frozenset[str]:
        """Names of the methods this engine implements."""
        return frozenset((*METHODS, *TOGETHER))

    @property
    def race_methods(self) -> tuple[str, ...]:
        """Names of the methods in a race (`metaopt_hpo.comparison.race`)."""
        return race.METHODS

    def race(self, method: Method, task: SearchTask) -> Iterator[TrialRecord]:
        """Records of the runs of a race; see `metaopt_hpo_ray.race`.

        Raises:
            EngineError: no such method.
        """
        return race.race(method, task)

    @contextlib.contextmanager
    def shared(self, cpus: int) -> Iterator[None]:
        """One cluster for searches in several processes started meanwhile; each would start its own without.

        Nothing is done where RAY_ADDRESS names a cluster already.

        Args:
            cpus: torch threads of all the searches together.
        """
        if os.environ.get("RAY_ADDRESS"):
            yield
            return
        mine = not ray.is_initialized()
        start_ray(self._concurrency * cpus)
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        try:
            yield
        finally:
            del os.environ["RAY_ADDRESS"]
            if mine:
                ray.shutdown()

    def search(
        self,
        method: Method,
        task: SearchTask,
        *,
        store: str | None = None,
        study: str,
        progress: Progress | None = None,
    ) -> list[TrialRecord]:
        """Spend the task's budget with the method; see `metaopt_hpo.comparison.engine.SearchEngine`.

        Ray is started where it is not: the cluster at RAY_ADDRESS, else one on this machine.

        Args:
            store: a folder, made where it is missing; `STORE.ray` where STORE is a file's name. None keeps
                nothing.
            study: unique name within the store; one that exists is resumed.

        Raises:
            EngineError: an unknown method, a corrupt or foreign store, or a trial that raised.
        """
        check_method(self.name, method, self.methods)
        if store is not None:
            return self._search(method, task, folder_of(store, study), study, progress)
        with tempfile.TemporaryDirectory(prefix="metaopt-ray-") as folder:
            return self._search(method, task, Path(folder), study, progress)

    def _search(
        self, method: Method, task: SearchTask, folder: Path, study: str, progress: Progress | None
    ) -> list[TrialRecord]:
        if method.name in TOGETHER:
            populations.check_installed(method, task)
        threads = threads_here()
        claim(folder, method, task)
        parts = sorted(folder.glob("part-*"), key=lambda p: int(p.name.removeprefix("part-")))
        own = Own(method, study, task.objective.name)
        done: list[TrialRecord] = []
        for part in parts:
            done += finished(part, own, len(done))
        if progress is not None:
            for record in done:
                progress(record)
        start_ray(self._concurrency * threads)
        run = _Experiments(method, task, folder, study, threads, self._concurrency, progress)
        number = len(parts)
        if method.name not in TOGETHER:
            return [*done, *run.one_by_one(f"part-{number}", done)]
        while (population := plan(method, task, done)) is not None:
            done += run.together(f"part-{number}", done, population)
            number += 1
        return done


@dataclasses.dataclass(frozen=True)
class _Experiments:
    """Tune experiments of one search, each in a part of its folder."""

    method: Method
    task: SearchTask
    folder: Path
    study: str
    threads: int
    concurrency: int
    progress: Progress | None

    def one_by_one(self, part: str, done: list[TrialRecord]) -> list[TrialRecord]:
        """Trials that a searcher proposes while the budget lasts."""
        search = BudgetSearch(make_proposer(self.method, self.task), self.task, done)
        trainable = tune.with_parameters(whole_run, objective=self.task.objective, threads=self.threads)
        return self._fit(
            part,
            len(done),
            trainable,
            {},
            search_alg=search,
            scheduler=make_scheduler(self.method, self.task),
            num_samples=-1,
            max_concurrent_trials=self.concurrency,
        )

    def together(self, part: str, done: list[TrialRecord], population: Plan) -> list[TrialRecord]:
        """Trials that wait for each other; as many run at once as the cluster has room for."""
        trainable = tune.with_parameters(
            halted_run,
            objective=self.task.objective,
            threads=self.threads,
            milestones=population.milestones,
            turns=populations.told_turns(population),
        )
        space, scheduler = populations.in_tune(self.method, self.task, population)
        with populations.seeded(self.task, len(done)):
            return self._fit(part, len(done), trainable, space, scheduler=scheduler)

    def _fit(
        self, part: str, first: int, trainable: Any, space: dict[str, Any], **options: Any
    ) -> list[TrialRecord]:
        keeper = JournalCallback()
        told = _Tell(keeper, Own(self.method, self.study, self.task.objective.name), first, self.progress)
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": self.threads}),
            param_space=space,
            tune_config=tune.TuneConfig(metric=METRIC, mode="min", reuse_actors=True, **options),
            run_config=tune.RunConfig(
                name=part,
                storage_path=str(self.folder),
                callbacks=[keeper, told],
                # a paused trial is taken up again from its last checkpoint, or from another's
                checkpoint_config=tune.CheckpointConfig(num_to_keep=SAFE_FOR_PBT),
                verbose=0,
            ),
        )
        with quiet():
            results = tuner.fit()
        for error in results.errors:
            raise EngineError(
                f"a trial of {self.study!r} failed: {str(error).strip().splitlines()[-1]}"
            ) from error
        return told.records


class _Tell(tune.Callback):
    """Hands on each finished trial as a record."""

    def __init__(self, keeper: JournalCallback, own: Own, first: int, progress: Progress | None) -> None:
        self.records: list[TrialRecord] = []
        self._keeper = keeper
        self._own = own
        self._first = first
        self._progress = progress

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._tell(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._tell(trial)

    def _tell(self, trial: Trial) -> None:
        entry = self._keeper.book.entries[trial.trial_id]
        record = self._own(entry.record(), self._first + len(self.records))
        self.records.append(record)
        if self._progress is not None:
            self._progress(record)

    def __getstate__(self) -> dict[str, Any]:
        # Tune writes its callbacks to the experiment's folder; who listens is not a part of it
        return {**self.__dict__, "_progress": None}
