"""OptunaEngine: runs the methods of a comparison on any objective, in an Optuna study, at equal FLOPs.

Proposals are a function of the task's seed, the number of the proposal and the trials finished before it, so
that a search that was interrupted goes on exactly as it would have.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import optuna
import sqlalchemy.exc
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from metaopt_hpo.comparison.engine import EngineError, Progress, SearchTask
from metaopt_hpo.comparison.methods import Method
from metaopt_hpo.comparison.objective import Configuration
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.schema import TableError
from metaopt_hpo_optuna import _compat
from metaopt_hpo_optuna.fields import FLOPS_PER_TOKEN, REASON, RECORD, plain
from metaopt_hpo_optuna.proposers import PROPOSERS, Proposal, make_pruner
from metaopt_hpo_optuna.store import open_store
from metaopt_hpo_optuna.study_table import record_from_json, record_to_json

if TYPE_CHECKING:
    from metaopt_hpo.comparison.race import Race

TASK = "metaopt:task"
"""Study user attribute: the task the study belongs to."""

CONFIGURATION = "metaopt:configuration"
"""Trial user attribute: what is run, so that an interrupted trial can be accounted for."""

INTERRUPTED = "metaopt:interrupted"
"""Trial user attribute: the process ended before the trial did, and its proposal is made again."""

BUDGET_SLACK = 1e-9
"""Relative slack of the budget: sums of equal costs differ from their product in the last digits."""

PENALTY = 2.0
"""A diverged trial counts as this multiple of the untrained model's loss: what training calls exploded."""


class OptunaEngine:
    """Runs grid, random, TPE, GP, CMA-ES, median, Hyperband, ASHA, MetaOptimize and law-guided search.

    One search is one Optuna study. Each trial holds its record as a user attribute, so that the trial table
    is rebuilt from the study alone. One process works at a study at a time; several may share a store.
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
        if method.name not in PROPOSERS:
            raise EngineError(
                f"engine 'optuna' has no method {method.name!r}; it has {', '.join(sorted(PROPOSERS))}"
            )
        with _quiet_optuna():
            search = _Search(method, task, _open_study(method, task, store, study), study, progress)
            return search.run()

    @property
    def race_methods(self) -> tuple[str, ...]:
        """Methods that race for a target (`metaopt_hpo.comparison.race`)."""
        from metaopt_hpo_optuna.race import METHODS

        return tuple(METHODS)

    def race(self, method: str, race: Race) -> Iterator[TrialRecord]:
        """A method's trials in a race, in a study in memory."""
        from metaopt_hpo_optuna.race import run_race

        return run_race(method, race)


class _Search:
    """One method's search: the loop of ask, run and tell under the budget."""

    def __init__(
        self, method: Method, task: SearchTask, study: Study, name: str, progress: Progress | None
    ) -> None:
        self._method = method
        self._task = task
        self._study = study
        self._name = name
        self._progress = progress
        self._proposer = PROPOSERS[method.name](method, task)
        self._records: list[TrialRecord] = []
        self._made = 0

    def run(self) -> list[TrialRecord]:
        self._recover()
        spent = math.fsum(r.cost for r in [*self._task.evidence, *self._records])
        limit = self._task.budget * (1 + BUDGET_SLACK)
        while True:
            proposal = self._proposer.propose(self._study, self._made)
            if proposal is None:
                break
            if spent + self._cost(proposal, proposal.likely_lr) > limit:
                break
            trial, lr = proposal.start(self._study)
            configuration = self._task.configuration(lr, strategy=proposal.strategy)
            record = self._run_trial(trial, configuration)
            spent += record.cost
            self._made += 1
            self._add(record)
        return self._records

    def _add(self, record: TrialRecord) -> None:
        self._records.append(record)
        if self._progress is not None:
            self._progress(record)

    def _recover(self) -> None:
        """Account for what the store holds; close trials whose process is gone."""
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state == TrialState.WAITING:
                self._study.tell(self._study.ask(), state=TrialState.FAIL)
                continue
            if CONFIGURATION not in trial.user_attrs:
                # asked, and not begun: it has cost nothing
                if trial.state == TrialState.RUNNING:
                    self._study.tell(trial.number, state=TrialState.FAIL)
                continue
            if trial.state == TrialState.RUNNING:
                record = self._close(trial)
            elif RECORD in trial.user_attrs:
                record = self._own(record_from_json(trial.user_attrs[RECORD]), trial.number)
            else:
                record = self._interrupted(trial, "the process ended before the trial did")
            if trial.state != TrialState.FAIL and record.state != "failed":
                self._made += 1
            self._add(record)

    def _close(self, trial: FrozenTrial) -> TrialRecord:
        live = _compat.resumed(self._study, trial)
        return self._fail(live, trial, "the process ended before the trial did")

    def _fail(self, live: Trial, trial: FrozenTrial, reason: str) -> TrialRecord:
        record = self._interrupted(trial, reason)
        live.set_user_attr(INTERRUPTED, True)
        live.set_user_attr(REASON, reason)
        live.set_user_attr(RECORD, record_to_json(record))
        self._study.tell(live, state=TrialState.FAIL)
        return record

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
            TrialRecord(
                size=configuration.size,
                tokens=reached,
                batch=configuration.batch,
                lr=configuration.lr,
                loss=loss,
                workload=self._task.objective.name,
                strategy=configuration.strategy,
                state="failed",
                reason=reason,
                seed=configuration.seed,
                target_tokens=configuration.tokens,
                cost=per_token * reached,
                params=dict(configuration.options),
            ),
            trial.number,
        )

    def _own(self, record: TrialRecord, number: int) -> TrialRecord:
        return replace(record, trial=str(number), study=self._name, engine="optuna", method=self._method.name)

    def _cost(self, proposal: Proposal, lr: float) -> float:
        return self._task.objective.cost(self._task.configuration(lr, strategy=proposal.strategy))

    def _run_trial(self, trial: Trial, configuration: Configuration) -> TrialRecord:
        task = self._task
        # the cost of a token is written first: with the configuration there, a trial counts as begun
        trial.set_user_attr(FLOPS_PER_TOKEN, plain(task.objective.cost(configuration) / configuration.tokens))
        for name in ("size", "tokens", "batch", "strategy"):
            trial.set_user_attr(name, plain(getattr(configuration, name)))
        if "lr" not in trial.params:
            trial.set_user_attr("lr", plain(configuration.lr))
        trial.set_user_attr(CONFIGURATION, plain(asdict(configuration)))

        def report(tokens: int, loss: float) -> str | None:
            trial.report(float(loss), step=int(tokens))
            if trial.should_prune():
                return (
                    f"{type(self._study.pruner).__name__} stopped it after {tokens} tokens at loss {loss:.4g}"
                )
            return None

        try:
            record = task.objective.run(configuration, report)
        except BaseException as error:
            frozen = self._study.get_trials(deepcopy=False)[trial.number]
            self._fail(trial, frozen, f"{type(error).__name__}: {error}".strip(": "))
            raise
        record = self._own(record, trial.number)
        if record.state == "complete" and not math.isfinite(record.loss):
            record = replace(record, state="diverged", reason=f"the final loss is {record.loss}")
        self._tell(trial, record)
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
        frozen = self._study.get_trials(deepcopy=False)[trial.number]
        known = [record.initial_loss, *frozen.intermediate_values.values()]
        known += [t.value for t in self._study.get_trials(deepcopy=False) if t.value is not None]
        finite = [v for v in known if math.isfinite(v)]
        if finite:
            penalty = max([*finite, PENALTY * record.initial_loss])
            step = max(round(record.tokens), (frozen.last_step or 0) + 1)
            trial.report(penalty if math.isfinite(penalty) else max(finite), step=step)


def _open_study(method: Method, task: SearchTask, store: str | None, name: str) -> Study:
    fingerprint = _fingerprint(method, task)
    try:
        storage = open_store(store)
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            direction="minimize",
            pruner=make_pruner(method, task),
            load_if_exists=True,
        )
        trials, attributes = study.get_trials(deepcopy=False), study.user_attrs
        if not trials and TASK not in attributes:
            study.set_user_attr(TASK, fingerprint)
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise EngineError(f"the store {store} cannot be used: {error}") from error
    except (KeyError, json.JSONDecodeError, TableError) as error:
        raise EngineError(f"the store {store} is damaged: {error!r}") from error
    if TASK not in attributes:
        if trials:
            raise EngineError(
                f"study {name!r} in {store} was not made by a comparison; choose another store or study name"
            )
    elif attributes[TASK] != fingerprint:
        saved = attributes[TASK] if isinstance(attributes[TASK], dict) else {}
        changed = sorted(k for k in fingerprint if saved.get(k) != fingerprint[k])
        raise EngineError(
            f"study {name!r} in {store} belongs to another task (other {', '.join(changed)}); "
            "choose another store or study name, or repeat the settings it was started with"
        )
    return study


def _fingerprint(method: Method, task: SearchTask) -> dict[str, Any]:
    """What a study must have been started with to be resumed; anything that a proposal depends on."""
    evidence = [[r.study, r.trial, r.size, r.lr, r.loss] for r in task.evidence]
    return {
        "method": method.name,
        "objective": task.objective.name,
        "size": float(task.size),
        "tokens": float(task.tokens),
        "batch": float(task.batch),
        "lr_bounds": [float(b) for b in task.lr_bounds],
        "budget": float(task.budget),
        "seed": int(task.seed),
        "strategy": task.strategy,
        "options": plain(dict(task.options)),
        "evidence": json.dumps(plain(evidence)),
    }


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Optuna's log line per trial would break a progress display; errors still show."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, logging.ERROR))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
