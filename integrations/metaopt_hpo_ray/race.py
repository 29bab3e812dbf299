"""Ray's searchers and schedulers in a race for (lr, batch) at a target, driven one trial at a time without a cluster.

Replayed trials take microseconds and Tune's own loop a second each. So the real classes are called here in the
order in which Tune calls them, with stub trials: every suggestion and every decision is theirs, and only the
processes are missing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from metaopt_hpo.comparison.engine import EngineError, SearchTask
from metaopt_hpo.comparison.methods import Method
from metaopt_hpo.trials.logged_results import METRIC, PROGRESS, WORK
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo_ray.journal_callback import JournalCallback
from metaopt_hpo_ray.proposers import make_scheduler, tpe_search
from metaopt_hpo_ray.scheduler import ScalingLawScheduler
from metaopt_hpo_ray.searcher import ScalingLawSearch

METHODS = ("random", "tpe", "asha", "hyperband", "tpe+asha", "law", "law+scheduler")
"""PBT and PB2 are missing: they change lr midway, and a table holds no such run."""

IDLE = 200
"""Trials in a row that were not launched, after which a search has nothing more to run."""


class _Controller:
    """What a scheduler may ask of Tune while one trial runs at a time."""

    def __init__(self, scheduler: TrialScheduler) -> None:
        self._scheduler = scheduler
        self.trials: list[Trial] = []

    def get_trials(self) -> list[Trial]:
        return self.trials

    def stop_trial(self, trial: Trial) -> None:
        self._scheduler.on_trial_remove(self, trial)  # type: ignore[arg-type]
        trial.set_status(Trial.TERMINATED)


def race(method: Method, race: SearchTask) -> Iterator[TrialRecord]:
    """Records of a method's runs in the order they end, until the budget is spent.

    Raises:
        EngineError: no such method.
    """
    if method.name not in METHODS:
        raise EngineError(f"engine 'ray' races {', '.join(METHODS)}; not {method.name!r}")
    logging.getLogger("metaopt_hpo_ray").setLevel(logging.WARNING)
    search, scheduler = _search(method.name, race), _scheduler(method, race)
    controller = _Controller(scheduler)
    spent, idle, number = 0.0, 0, 0
    while spent < race.budget and idle < IDLE:
        key = f"t{number}"
        number += 1
        config = search.suggest(key)
        if not isinstance(config, dict):
            return
        record = _run(key, config, search, scheduler, controller, race)
        if record is None:
            idle += 1
            continue
        idle = 0
        spent += record.cost
        yield replace(record, trial=key, engine="ray", method=method.name)


def _run(
    key: str,
    config: dict[str, Any],
    search: Any,
    scheduler: TrialScheduler,
    controller: _Controller,
    race: SearchTask,
) -> TrialRecord | None:
    """One trial through Tune's hooks; None where the scheduler would not launch it."""
    cell = (float(config.get("size", race.size)), float(config.get("tokens", race.tokens)))
    c = race.configuration(float(config["lr"]), cell=cell, batch=float(config["batch"]))
    trial = Trial("__fake", trial_id=key, config=config, stub=True)
    controller.trials = [trial]
    before = np.random.get_state()  # noqa: NPY002  HyperBand draws a trial's bracket from it
    np.random.seed([race.seed & 0xFFFFFFFF, int(key[1:])])  # noqa: NPY002
    scheduler.on_trial_add(controller, trial)  # type: ignore[arg-type]
    np.random.set_state(before)  # noqa: NPY002
    if scheduler.choose_trial_to_run(controller) is not trial:  # type: ignore[arg-type]
        search.on_trial_complete(key)
        return None
    trial.set_status(Trial.RUNNING)
    per_token = race.objective.cost(c) / c.tokens
    reports = 0

    def result(tokens: float, loss: float) -> dict[str, Any]:
        nonlocal reports
        reports += 1
        work = per_token * tokens
        return {METRIC: loss, PROGRESS: tokens, WORK: work, "trial_id": key, "training_iteration": reports}

    def report(tokens: float, loss: float) -> str | None:
        if tokens >= c.tokens:
            return None
        told = result(tokens, loss)
        decision = scheduler.on_trial_result(controller, trial, told)  # type: ignore[arg-type]
        search.on_trial_result(key, told)
        return "its scheduler stopped it" if decision == TrialScheduler.STOP else None

    record = race.objective.run(c, report)
    for book in _books(search, scheduler):
        if key in book.entries:  # a table runs the nearest configuration that it knows
            book.entries[key].lr, book.entries[key].batch = record.lr, record.batch
    last = result(record.tokens, record.loss)
    if record.state == "complete":
        scheduler.on_trial_result(controller, trial, last)  # type: ignore[arg-type]
    scheduler.on_trial_complete(controller, trial, last)  # type: ignore[arg-type]
    trial.set_status(Trial.TERMINATED)
    search.on_trial_complete(key, result=last)
    return record


def _books(search: Any, scheduler: Any) -> list[Any]:
    return [x.book for x in (search, scheduler) if hasattr(x, "book")]


def _search(method: str, race: SearchTask) -> Any:
    if method.startswith("law"):
        search = ScalingLawSearch(
            candidates=[*race.pilots, race.target],
            target=race.target,
            lr=race.box["lr"],
            batch=race.box["batch"],
            base=race.base,
            seed=race.seed,
        )
        search.set_search_properties(METRIC, "min", {})
        return search
    if method.startswith("tpe"):
        return tpe_search(race.box, seed=race.seed)
    return _Random(race)


class _Random:
    """Log-uniform points."""

    def __init__(self, race: SearchTask) -> None:
        self._race = race
        self._rng = np.random.default_rng([race.seed & 0xFFFFFFFF, 2])

    def suggest(self, key: str) -> dict[str, float]:
        return {name: math.exp(self._rng.uniform(*np.log(bounds))) for name, bounds in self._race.box.items()}

    def on_trial_result(self, key: str, result: dict[str, Any]) -> None:
        """Nothing is learned."""

    def on_trial_complete(self, key: str, result: dict[str, Any] | None = None) -> None:
        """Nothing is learned."""


def _scheduler(method: Method, race: SearchTask) -> TrialScheduler:
    scheduler: TrialScheduler
    if method.name == "law+scheduler":
        scheduler = ScalingLawScheduler(background=False, base=race.base, seed=race.seed)
        JournalCallback(scheduler)
    else:
        scheduler = make_scheduler(method, race) or FIFOScheduler()
    scheduler.set_search_properties(METRIC, "min")
    return scheduler
