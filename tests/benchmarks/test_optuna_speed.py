"""What the pruner and the sampler cost beside Optuna's own, in the same study and the same run.

`make bench` runs this file. A study has 1,000 or 10,000 finished trials of four sizes, eight of them still
running with 50 reports each; nothing is asserted about times. `METAOPT_BENCH_TRIALS` chooses the counts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from metaopt_hpo.trials.record import token_grid
from metaopt_hpo_optuna import ScalingLawPruner, ScalingLawSampler

optuna.logging.set_verbosity(optuna.logging.ERROR)

COUNTS = [int(n) for n in os.environ.get("METAOPT_BENCH_TRIALS", "1000,10000").split(",")]
TOKENS, RUNNING = 2**16, 8
GRID = token_grid(TOKENS, start=2**4, stride=1)[-50:]
SIZES = (1e4, 2e4, 4e4, 1e5)
LR = FloatDistribution(1e-4, 1.0, log=True)

PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "ScalingLawPruner": ScalingLawPruner,
    "MedianPruner": optuna.pruners.MedianPruner,
}
SAMPLERS: dict[str, Callable[[], BaseSampler]] = {
    "ScalingLawSampler": lambda: ScalingLawSampler(seed=0),
    "TPESampler": lambda: optuna.samplers.TPESampler(seed=0),
}


def fill(study: optuna.Study, count: int, reports: int) -> None:
    rng = np.random.default_rng(0)
    trials = []
    for i in range(count + RUNNING):
        size, lr = SIZES[i % 4], float(10 ** rng.uniform(-3.5, 0))
        x = math.log(lr / (0.03 * (size / 1e4) ** -0.4))
        loss = 2 + 2 * (size / 1e4) ** -0.3 + 0.15 * x * x
        done = i < count
        steps = GRID[-reports:] if done else GRID[:-1]
        trials.append(
            optuna.create_trial(
                state=TrialState.COMPLETE if done else TrialState.RUNNING,
                value=loss if done else None,
                params={"lr": lr},
                distributions={"lr": LR},
                user_attrs={"size": size, "tokens": TOKENS, "batch": 512},
                intermediate_values={t: loss * (1 + 6 * (t**-0.5 - TOKENS**-0.5)) for t in steps},
            )
        )
    study.add_trials(trials)


@pytest.fixture(scope="module", params=[(kind, n) for n in COUNTS for kind in ("memory", "sqlite")], ids=str)
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    if not request.config.getoption("--benchmark-only"):
        pytest.skip("measures speed: run `make bench`")
    kind, count = request.param
    folder: Path = tmp_path_factory.mktemp("bench")
    study = optuna.create_study(storage=None if kind == "memory" else f"sqlite:///{folder / 's.sqlite'}")
    # ten reports of each finished trial are enough for both pruners, and keep the preparation to minutes
    fill(study, count, reports=10)
    return study


@pytest.mark.parametrize("name", PRUNERS)
def test_should_prune(benchmark: Callable[..., object], study: optuna.Study, name: str) -> None:
    study.pruner = PRUNERS[name]()
    study.enqueue_trial({"lr": 0.02})
    trial = study.ask()
    for key, value in {"size": 1e5, "tokens": TOKENS, "batch": 512}.items():
        trial.set_user_attr(key, value)
    trial.suggest_float("lr", 1e-4, 1.0, log=True)
    trial.report(4.0, GRID[-5])
    trial.should_prune()  # reads the study and fits the law, once a process
    benchmark.group = f"should_prune {len(study.get_trials(deepcopy=False))} {type(study._storage).__name__}"  # type: ignore[attr-defined]
    benchmark(trial.should_prune)
    study.tell(trial, state=TrialState.FAIL)


@pytest.mark.parametrize("name", SAMPLERS)
def test_ask(benchmark: Callable[..., object], study: optuna.Study, name: str) -> None:
    study.sampler = SAMPLERS[name]()

    def ask() -> None:
        trial = study.ask()
        for key, value in {"size": 1e5, "tokens": TOKENS, "batch": 512}.items():
            trial.set_user_attr(key, value)
        trial.suggest_float("lr", 1e-4, 1.0, log=True)
        study.tell(trial, state=TrialState.FAIL)

    ask()
    benchmark.group = f"ask {len(study.get_trials(deepcopy=False))} {type(study._storage).__name__}"  # type: ignore[attr-defined]
    benchmark.pedantic(ask, rounds=10)  # type: ignore[attr-defined]
