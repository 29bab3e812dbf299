"""OptunaEngine: runs the methods of a comparison on any objective, in an Optuna study, at equal FLOPs.

Proposals are a function of the task's seed, the number of the proposal and the trials finished before it. A trial
under way when its process ended goes on as the same trial, from its checkpoint where the objective keeps one, else from
its beginning; what its process had spent is the operator's loss, not the method's. So a search that was interrupted
ends as it would have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from urllib.parse import quote

from optuna.exceptions import StorageInternalError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from metaopt_hpo.atomic import WriteError
from metaopt_hpo.comparison.engine import EngineError, Progress, SearchTask, check_method
from metaopt_hpo.comparison.methods import Method
from metaopt_hpo.comparison.objective import Checkpointing, Configuration, ObjectiveUnavailable, settled
from metaopt_hpo.comparison.proposals import Spending
from metaopt_hpo.locks import only_process
from metaopt_hpo.trials.diverged import stand_in_loss
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.record_json import plain, record_to_json
from metaopt_hpo_optuna import _compat
from metaopt_hpo_optuna.fields import FLOPS_PER_TOKEN, REASON, RECORD, record_from_json
from metaopt_hpo_optuna.proposers import PROPOSERS
from metaopt_hpo_optuna.resuming import Reports, checkpoint_file, running_folder
from metaopt_hpo_optuna.search_study import open_study, quiet_optuna
from metaopt_hpo_optuna.store import store_errors

CONFIGURATION = "metaopt:configuration"
"""Trial user attribute: what is run, so that a failed trial can be accounted for."""

PENALTY_STEP = "metaopt:penalty_step"
"""Trial user attribute: the step at which a diverged trial's penalty is reported."""

NOT_THE_METHODS = (
    OSError, MemoryError, WriteError, EngineError, ObjectiveUnavailable, SQLAlchemyError, StorageInternalError,
)  # fmt: skip
"""Errors of the machine, not of a trial: like an interrupt, they leave the trial to be taken up again."""


class OptunaEngine:
    """Runs grid, random, TPE, GP, CMA-ES, median, Hyperband, ASHA, MetaOptimize and law-guided search.

    One search is one Optuna study. Each trial holds its record as a user attribute, so that the trial table
    is rebuilt from the study alone. One process works at a study at a time; several may share a store.

    Examples:
        >>> from metaopt_hpo.comparison.engine import get_engine
        >>> type(get_engine("optuna")).__name__
        'OptunaEngine'
    """

    name = "optuna"

    @property
    def methods(self) -> frozenset[str]:
        """Names of the methods this engine implements."""
        return frozenset(PROPOSERS)

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

        Args:
            store: a file path (SQLite, or a Journal where it ends in .journal or .log), a storage URL, or None.
            study: unique name within the store; one that exists is resumed.

        Raises:
            EngineError: an unknown method, a corrupt or foreign store, or a study of another task.
        """
        check_method(self.name, method, PROPOSERS)
        folder = running_folder(store)
        alone = (
            nullcontext()
            if folder is None
            else only_process(folder / f"{quote(study, safe='')}.lock", f"study {study!r} in {store}")
        )
        with quiet_optuna(), alone, store_errors(store):
            opened = open_study(method, task, store, study)
            return _Search(method, task, opened, store, progress).run()

    @property
    def race_methods(self) -> tuple[str, ...]:
        """Methods that race for a target (`metaopt_hpo.comparison.race`)."""
        from metaopt_hpo_optuna.race import METHODS

        return tuple(METHODS)

    def race(self, method: Method, task: SearchTask) -> Iterator[TrialRecord]:
        """A method's trials in a race, in a study in memory."""
        from metaopt_hpo_optuna.race import run_race

        return run_race(method, task)


class _Search:
    """One method's search: the loop of ask, run and tell under the budget."""

    def __init__(
        self, method: Method, task: SearchTask, study: Study, store: str | None, progress: Progress | None
    ) -> None:
        self._method = method
        self._task = task
        self._study = study
        self._name = study.study_name
        self._store = store
        self._begun: FrozenTrial | None = None
        self._progress = progress
        self._proposer = PROPOSERS[method.name](method, task)
        self._records: list[TrialRecord] = []
        self._made: list[TrialRecord] = []
        """Those that used up a proposal: all but the failed ones of earlier processes, which are made again."""

    def run(self) -> list[TrialRecord]:
        self._recover()
        spending = Spending(self._task, self._records)
        while True:
            proposal = self._proposer.propose(self._study, self._made)
            if proposal is None or not spending.bears(proposal.lr, proposal.strategy):
                break
            begun, self._begun = self._begun, None
            trial, lr = proposal.start(self._study, begun)
            configuration = self._task.configuration(lr, strategy=proposal.strategy)
            record = self._run_trial(trial, configuration)
            spending.end(trial.number, record.cost)
            self._made.append(record)
            self._add(record)
        return self._records

    def _add(self, record: TrialRecord) -> None:
        self._records.append(record)
        if self._progress is not None:
            self._progress(record)

    def _recover(self) -> None:
        """Account for what the store holds, and find the trial that an interrupted process left under way."""
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state in (TrialState.WAITING, TrialState.RUNNING) and RECORD not in trial.user_attrs:
                self._take_up(trial)
                continue
            if CONFIGURATION not in trial.user_attrs:  # asked, and not begun: it has cost nothing
                continue
            if RECORD in trial.user_attrs:
                record = self._own(record_from_json(trial.user_attrs[RECORD]), trial.number)
                if trial.state == TrialState.RUNNING:  # ended between its record and its result
                    self._tell(_compat.resumed(self._study, trial), record)
                    record = record_from_json(record_to_json(record))
            else:
                record = self._interrupted(trial, "the process ended before the trial did")
            if record.state != "failed":
                self._made.append(record)
            self._add(record)

    def _take_up(self, trial: FrozenTrial) -> None:
        """Go on with this trial next; there is one, unless another program put trials into the study."""
        if self._begun is None:
            self._begun = trial
        elif trial.state == TrialState.WAITING:
            self._study.tell(self._study.ask(), state=TrialState.FAIL)
        else:
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _fail(self, live: Trial, trial: FrozenTrial, reason: str) -> None:
        record = self._interrupted(trial, reason)
        live.set_user_attr(REASON, reason)
        live.set_user_attr(RECORD, record_to_json(record))
        self._study.tell(live, state=TrialState.FAIL)

    def _interrupted(self, trial: FrozenTrial, reason: str) -> TrialRecord:
        """What a trial that never ended had spent: all up to its last report."""
        try:
            configuration = Configuration(**trial.user_attrs[CONFIGURATION])
            per_token = float(trial.user_attrs[FLOPS_PER_TOKEN])
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError(
                f"trial {trial.number} of study {self._name!r} was not written by this engine: {error}"
            ) from error
        reached = float(trial.last_step or 0)
        loss = trial.intermediate_values[trial.last_step] if trial.last_step is not None else math.nan
        return self._own(
            configuration.record(
                tokens=reached,
                loss=loss,
                workload=self._task.objective.name,
                state="failed",
                reason=reason,
                cost=per_token * reached,
            ),
            trial.number,
        )

    def _own(self, record: TrialRecord, number: int) -> TrialRecord:
        return replace(record, trial=str(number), study=self._name, engine="optuna", method=self._method.name)

    def _run_trial(self, trial: Trial, configuration: Configuration) -> TrialRecord:
        task = self._task
        # the cost of a token is written first: with the configuration there, a trial counts as begun
        trial.set_user_attr(FLOPS_PER_TOKEN, plain(task.objective.cost(configuration) / configuration.tokens))
        for name in ("size", "tokens", "batch", "strategy"):
            trial.set_user_attr(name, plain(getattr(configuration, name)))
        if "lr" not in trial.params:
            trial.set_user_attr("lr", plain(configuration.lr))
        trial.set_user_attr(CONFIGURATION, plain(asdict(configuration)))
        report = Reports(self._study, trial, self._frozen(trial))
        saved = checkpoint_file(self._store, self._name, trial.number)
        try:
            if saved is not None and isinstance(task.objective, Checkpointing):
                record = task.objective.run_saved(configuration, report, saved)
            else:
                record = task.objective.run(configuration, report)
        except NOT_THE_METHODS:
            raise
        except Exception as error:
            self._fail(trial, self._frozen(trial), f"{type(error).__name__}: {error}".strip(": "))
            raise
        record = settled(self._own(record, trial.number))
        self._tell(trial, record)
        if saved is not None:
            saved.unlink(missing_ok=True)
        # as a later process would read it, so that a resumed search returns the same records
        return record_from_json(record_to_json(record))

    def _tell(self, trial: Trial, record: TrialRecord) -> None:
        trial.set_user_attr(RECORD, record_to_json(record))
        if record.reason:
            trial.set_user_attr(REASON, record.reason)
        if record.state == "complete":
            self._study.tell(trial, record.loss)
        elif record.state == "failed":
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            if record.state == "diverged":
                self._report_penalty(trial, record)
            self._study.tell(trial, state=TrialState.PRUNED)

    def _report_penalty(self, trial: Trial, record: TrialRecord) -> None:
        """A finite value for a diverged trial, as its last report: samplers learn that it was bad."""
        frozen = self._frozen(trial)
        others = (t.value for t in self._study.get_trials(deepcopy=False) if t.value is not None)
        stand_in = stand_in_loss(record.initial_loss, (*frozen.intermediate_values.values(), *others))
        if stand_in is not None:
            # noted, so that a process that takes over here does not report it a step later
            step = frozen.user_attrs.get(PENALTY_STEP)
            if step is None:
                step = max(round(record.tokens), (frozen.last_step or 0) + 1)
                trial.set_user_attr(PENALTY_STEP, step)
            if step not in frozen.intermediate_values:
                trial.report(stand_in, step=step)

    def _frozen(self, trial: Trial) -> FrozenTrial:
        """The trial as it stands in the store."""
        return self._study.get_trials(deepcopy=False)[trial.number]
