"""Methods in a race (`metaopt_hpo.comparison.race`): real studies with Optuna's samplers and pruners, and ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, GPSampler, GridSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from metaopt_hpo.comparison.engine import SearchTask
from metaopt_hpo.comparison.methods import Method
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.record_json import record_to_json
from metaopt_hpo_optuna.fields import RECORD
from metaopt_hpo_optuna.proposers import make_pruner
from metaopt_hpo_optuna.pruner import ScalingLawPruner
from metaopt_hpo_optuna.sampler import ScalingLawSampler
from metaopt_hpo_optuna.search_study import quiet_optuna

FEW = 4
"""Random trials before a model of few: ten, Optuna's default, is more than most targets here need in all."""


def _law(race: SearchTask) -> BaseSampler:
    return ScalingLawSampler(
        models=dict(enumerate((*race.pilots, race.target))), seed=race.seed, base=race.base
    )


def _grid(race: SearchTask) -> BaseSampler:
    """A lattice of at most a factor of two a step over the box, in random order."""
    return _Grid({name: _steps(bounds) for name, bounds in race.box.items()}, seed=race.seed)


class _Grid(GridSampler):
    """GridSampler for ask and tell: after its last point it stops `Study.optimize`, and there is none."""

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Nothing; the race asks `is_exhausted`."""


def _steps(bounds: tuple[float, float]) -> list[float]:
    count = max(1, math.ceil(math.log2(bounds[1] / bounds[0]) - 1e-9))
    return [bounds[0] * (bounds[1] / bounds[0]) ** (i / count) for i in range(count + 1)]


METHODS: dict[str, Callable[[SearchTask], BaseSampler]] = {
    "law": _law,
    "law-no-pruner": _law,
    "tpe": lambda r: TPESampler(seed=r.seed),
    "tpe-few": lambda r: TPESampler(seed=r.seed, n_startup_trials=FEW),
    "hyperband": lambda r: TPESampler(seed=r.seed),
    "asha": lambda r: RandomSampler(seed=r.seed),
    "gp": lambda r: GPSampler(seed=r.seed, n_startup_trials=FEW),
    "random": lambda r: RandomSampler(seed=r.seed),
    "grid": _grid,
}


def _pruner(method: Method, race: SearchTask) -> BasePruner:
    if method.name == "law":
        return ScalingLawPruner(base=race.base)
    return make_pruner(method, race, int(min(race.rungs, default=race.tokens)))


def run_race(method: Method, race: SearchTask) -> Iterator[TrialRecord]:
    """Records of one method's study, trial after trial, until the budget is spent."""
    with quiet_optuna():
        sampler, pruner = METHODS[method.name](race), _pruner(method, race)
        study = optuna.create_study(study_name=f"{method.name}-{race.seed}", sampler=sampler, pruner=pruner)
        cells = (*race.pilots, race.target)
        spent = 0.0
        while spent < race.budget:
            trial = study.ask()
            cell = race.target
            if isinstance(sampler, ScalingLawSampler):
                cell = cells[trial.suggest_categorical("model", range(len(cells)))]
            trial.set_user_attr("size", cell[0])
            trial.set_user_attr("tokens", cell[1])
            batch, lr = (_suggest(trial, name, race.box[name]) for name in ("batch", "lr"))

            def report(tokens: int, loss: float, trial: optuna.Trial = trial) -> str | None:
                trial.report(loss, step=tokens)
                return "pruned" if trial.should_prune() else None

            record = race.objective.run(race.configuration(lr, cell=cell, batch=batch), report)
            trial.set_user_attr(RECORD, record_to_json(record))
            complete = record.state == "complete"
            study.tell(
                trial,
                record.loss if complete else None,
                TrialState.COMPLETE if complete else TrialState.PRUNED,
            )
            spent += record.cost
            yield record
            if isinstance(sampler, GridSampler) and sampler.is_exhausted(study):
                return


def _suggest(trial: optuna.Trial, name: str, bounds: tuple[float, float]) -> float:
    low, high = bounds
    if high > low * (1 + 1e-9):
        return trial.suggest_float(name, low, high, log=True)
    trial.set_user_attr(name, low)
    return low
