"""What each method of a comparison proposes next, in Tune's terms: a searcher that keeps to a budget of FLOPs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from metaopt_hpo.comparison.budget import (
    REDUCTION,
    RUNGS,
    before_median,
    first_rung,
    proposal_seed,
    random_first,
)
from metaopt_hpo.comparison.engine import EngineError, SearchTask
from metaopt_hpo.comparison.methods import Method
from metaopt_hpo.comparison.objective import Configuration
from metaopt_hpo.comparison.proposals import Points, Spending, points_of
from metaopt_hpo.trials.logged_results import METRIC, PROGRESS, STATE, WORK
from metaopt_hpo.trials.record import TrialRecord, TrialState


class Proposer(Protocol):
    """Learning rates one after another; `made` counts those that were run to their end or stopped."""

    strategy: str | None

    def propose(self, key: str, made: int) -> float | None:
        """The next lr, or None when there is none left."""
        ...

    def finished(self, key: str, result: dict[str, Any] | None, record: TrialRecord | None) -> None:
        """What became of the trial `key`."""
        ...


class _Own:
    """Points of the method itself."""

    def __init__(self, points: Points) -> None:
        self.strategy = points.strategy
        self._points = points
        self._ended: list[TrialRecord] = []

    def propose(self, key: str, made: int) -> float | None:
        return self._points.at(made, self._ended)

    def finished(self, key: str, result: dict[str, Any] | None, record: TrialRecord | None) -> None:
        if record is not None:
            self._ended.append(record)


class _TPE:
    """Ray's own OptunaSearch, as its users have it."""

    strategy: str | None = None

    def __init__(self, task: SearchTask) -> None:
        self._search = tpe_search(
            {"lr": task.lr_bounds}, seed=proposal_seed(task, 0), n_startup_trials=random_first(task)
        )

    def propose(self, key: str, made: int) -> float | None:
        suggestion = self._search.suggest(key)
        return None if suggestion is None else float(suggestion["lr"])

    def finished(self, key: str, result: dict[str, Any] | None, record: TrialRecord | None) -> None:
        if result is None and record is not None and math.isfinite(record.loss):
            # found in the store of an interrupted search
            self._search.add_evaluated_point(
                {"lr": record.lr}, record.loss, pruned=record.state != "complete"
            )
        elif result is not None:
            self._search.on_trial_complete(key, result=result)
        else:
            self._search.on_trial_complete(key, error=True)


def tpe_search(box: Mapping[str, tuple[float, float]], **options: Any) -> Any:
    """Tune's OptunaSearch over a box of positive numbers, with a TPE sampler of these options."""
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch
    except ImportError as error:
        raise EngineError(
            'Bayesian search on Ray uses Optuna, which is not installed; run: pip install "metaopt-hpo[optuna]"'
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return OptunaSearch(
        space={name: tune.loguniform(*bounds) for name, bounds in box.items()},
        metric=METRIC,
        mode="min",
        sampler=optuna.samplers.TPESampler(**options),
    )


def make_proposer(method: Method, task: SearchTask) -> Proposer:
    """The proposer of a method."""
    points = points_of(method, task)
    return _TPE(task) if points is None else _Own(points)


METHODS = ("grid", "random", "tpe", "median", "hyperband", "asha", "metaoptimize", "law")


def make_scheduler(method: Method, task: SearchTask) -> TrialScheduler | None:
    """The scheduler of a method; its time is tokens."""
    options: dict[str, Any] = {"time_attr": PROGRESS, "grace_period": first_rung(task.tokens)}
    if method.name == "median":
        return MedianStoppingRule(**options, min_samples_required=before_median(task))
    if method.name not in ("asha", "tpe+asha", "hyperband"):
        return None
    brackets = RUNGS if method.name == "hyperband" else 1
    last = int(task.tokens) + 1  # the last report is not a rung: the run ends by itself
    return AsyncHyperBandScheduler(**options, max_t=last, reduction_factor=REDUCTION, brackets=brackets)


class BudgetSearch(Searcher):
    """Proposes while the next trial fits in the budget; running trials are counted at their full cost until
    they end, so that the budget is kept whatever is stopped early."""

    def __init__(self, proposer: Proposer, task: SearchTask, done: list[TrialRecord]) -> None:
        super().__init__(metric=METRIC, mode="min")
        self._proposer = proposer
        self._task = task
        self._spending = Spending(task, done)
        self._made = sum(r.state != "failed" for r in done)
        self._running: dict[str, Configuration] = {}
        for r in done:
            if r.state != "failed":
                proposer.finished(f"earlier-{r.trial}", None, r)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next configuration as the trial's config; None while one must wait; FINISHED at the end."""
        strategy = self._proposer.strategy
        fits = self._spending.bears(None, strategy)
        lr = self._proposer.propose(trial_id, self._made) if fits else None
        if lr is None:
            return None if self._running else Searcher.FINISHED
        self._running[trial_id] = configuration = self._task.configuration(lr, strategy=strategy)
        self._spending.begin(trial_id, lr, strategy)
        self._made += 1
        return {**asdict(configuration), "options": dict(configuration.options)}

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Count what the trial has spent."""
        c = self._running.pop(trial_id, None)
        if c is None:
            return
        result = dict(result or {})
        self._spending.end(trial_id, float(result.get(WORK, 0.0)))
        record = None
        if not error and PROGRESS in result:
            tokens, cost = float(result[PROGRESS]), float(result.get(WORK, math.nan))
            diverged = result.get(STATE) == "diverged"
            state: TrialState = "diverged" if diverged else "complete" if tokens >= c.tokens else "pruned"
            record = c.record(
                tokens=tokens, loss=float(result[METRIC]), trial=trial_id, study="own", state=state, cost=cost
            )
        self._proposer.finished(trial_id, None if error else result, record)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search that was interrupted goes on from its journal, not from Tune's snapshot."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing; see `save`."""
