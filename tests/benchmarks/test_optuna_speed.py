"""What the pruner and the sampler cost beside Optuna's own, in the same study and the same run.

`make bench` runs this file. A study has 1,000 or 10,000 finished trials of four sizes and eight running ones, with 50
reports each; nothing is asserted about times. `METAOPT_BENCH_TRIALS` chooses the counts.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from metaopt_hpo.scaling.policy import refits
from metaopt_hpo.trials.record import token_grid
from metaopt_hpo_optuna import ScalingLawPruner, ScalingLawSampler, _compat
from metaopt_hpo_optuna.fields import Fields
from metaopt_hpo_optuna.study_table import trial_record

optuna.logging.set_verbosity(optuna.logging.ERROR)

COUNTS = [int(n) for n in os.environ.get("METAOPT_BENCH_TRIALS", "1000,10000").split(",")]
TOKENS, BATCH, RUNNING = 2**16, 512, 8
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


def trials(count: int) -> list[FrozenTrial]:
    """`count` finished trials and `RUNNING` that still run."""
    rng = np.random.default_rng(0)
    begin = datetime.now() - timedelta(days=1)
    made = []
    for i in range(count + RUNNING):
        size, lr = SIZES[i % 4], float(10 ** rng.uniform(-3.5, 0))
        done = i < count
        made.append(
            optuna.create_trial(
                state=TrialState.COMPLETE if done else TrialState.RUNNING,
                value=final_loss(size, lr) if done else None,
                params={"lr": lr},
                distributions={"lr": LR},
                user_attrs={"size": size, "tokens": TOKENS, "batch": BATCH},
                intermediate_values={t: loss_at(t, size, lr) for t in (GRID if done else GRID[:-1])},
            )
        )
        made[-1].datetime_start = begin + timedelta(seconds=i)
        made[-1].datetime_complete = begin + timedelta(seconds=i + 3) if done else None
    return made


def final_loss(size: float, lr: float) -> float:
    x = math.log(lr / (0.03 * (size / 1e4) ** -0.4))
    return 2 + 2 * (size / 1e4) ** -0.3 + 0.15 * x * x


def loss_at(tokens: float, size: float, lr: float) -> float:
    return final_loss(size, lr) * (1 + 6 * (tokens**-0.5 - TOKENS**-0.5))


def write_rows(storage: RDBStorage, study: optuna.Study, made: Sequence[FrozenTrial]) -> None:
    """The rows `study.add_trials` would write, in one transaction: it counts all earlier trials for each new one."""
    schema = sqlalchemy.MetaData()
    schema.reflect(storage.engine)
    rows: dict[str, list[dict[str, object]]] = {name: [] for name in schema.tables}
    for i, t in enumerate(made, start=1):
        times = {"datetime_start": utc(t.datetime_start), "datetime_complete": utc(t.datetime_complete)}
        rows["trials"].append({"trial_id": i, "number": i - 1, "study_id": 1, "state": t.state.name, **times})
        value = {"param_name": "lr", "param_value": t.params["lr"]}
        rows["trial_params"].append({"trial_id": i, **value, "distribution_json": distribution_to_json(LR)})
        rows["trial_user_attributes"] += [
            {"trial_id": i, "key": k, "value_json": json.dumps(v)} for k, v in t.user_attrs.items()
        ]
        rows["trial_intermediate_values"] += [
            {"trial_id": i, "step": k, "intermediate_value": v, "intermediate_value_type": "FINITE"}
            for k, v in t.intermediate_values.items()
        ]
        if t.value is not None:
            rows["trial_values"].append(
                {"trial_id": i, "objective": 0, "value": t.value, "value_type": "FINITE"}
            )
    with storage.engine.begin() as connection:
        for name, found in rows.items():
            if found:
                connection.execute(schema.tables[name].insert(), found)
    # it must be what Optuna itself would have written
    for kept, t in zip(study.get_trials(), made, strict=True):
        assert (kept.state, kept.value, kept.params, kept.distributions) == (
            t.state,
            t.value,
            t.params,
            t.distributions,
        )
        assert (kept.user_attrs, kept.intermediate_values) == (t.user_attrs, t.intermediate_values)
        assert kept.duration == t.duration


def utc(time: datetime | None) -> datetime | None:
    return None if time is None else time.astimezone(UTC).replace(tzinfo=None)


@pytest.fixture(scope="module", params=[(kind, n) for n in COUNTS for kind in ("memory", "sqlite")], ids=str)
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    if not request.config.getoption("--benchmark-only"):
        pytest.skip("measures speed: run `make bench`")
    kind, count = request.param
    if kind == "memory":
        study = optuna.create_study(study_name="bench")
        study.add_trials(trials(count))
        return study
    storage = RDBStorage(f"sqlite:///{tmp_path_factory.mktemp('bench') / 's.sqlite'}")
    study = optuna.create_study(study_name="bench", storage=storage)
    write_rows(storage, study, trials(count))
    return study


def running_trial(study: optuna.Study, lr: float) -> optuna.Trial:
    """A trial of the largest size that has come to an eighth of its tokens."""
    study.enqueue_trial({"lr": lr})
    trial = study.ask()
    for key, value in {"size": SIZES[-1], "tokens": TOKENS, "batch": BATCH}.items():
        trial.set_user_attr(key, value)
    trial.suggest_float("lr", LR.low, LR.high, log=True)
    for t in GRID[:-8]:
        trial.report(loss_at(t, SIZES[-1], lr), t)
    return trial


def settle() -> None:
    """Wait for the law that is fitted ahead, whose processor time would count."""
    for thread in threading.enumerate():
        if thread.name == "metaopt-law":
            thread.join()


def group(what: str, study: optuna.Study) -> str:
    kind = "memory" if isinstance(_compat.storage_of(study), InMemoryStorage) else "sqlite"
    count = sum(t.state == TrialState.COMPLETE for t in study.get_trials(deepcopy=False))
    return f"{what}, {kind}, {round(count, -3)} trials"


@pytest.mark.parametrize("lr", [0.01, 1.0], ids=["good", "bad"])
@pytest.mark.parametrize("name", PRUNERS)
def test_should_prune(benchmark: Any, study: optuna.Study, name: str, lr: float) -> None:
    study.pruner = PRUNERS[name]()
    trial = running_trial(study, lr)
    assert trial.should_prune() == (lr == 1.0)  # reads the study and fits the law, once a process
    settle()
    benchmark.group = group(f"should_prune of a {'bad' if lr == 1.0 else 'good'} trial", study)
    benchmark.pedantic(trial.should_prune, rounds=30, warmup_rounds=3)
    study.tell(trial, state=TrialState.FAIL)


@pytest.mark.parametrize("name", PRUNERS)
def test_should_prune_after_another_finished(benchmark: Any, study: optuna.Study, name: str) -> None:
    study.pruner = PRUNERS[name]()
    trial = running_trial(study, 0.01)
    trial.should_prune()
    settle()
    finished = iter(trials(20)[:20])
    benchmark.group = group("should_prune when one more has finished", study)
    benchmark.pedantic(trial.should_prune, setup=lambda: study.add_trial(next(finished)), rounds=20)
    study.tell(trial, state=TrialState.FAIL)


@pytest.mark.parametrize("name", PRUNERS)
def test_should_prune_while_a_law_is_fitted(benchmark: Any, study: optuna.Study, name: str) -> None:
    """The next law is fitted by a thread of the same process, which Python lets run in turns with this one."""
    study.pruner = PRUNERS[name]()
    trial = running_trial(study, 0.01)
    trial.should_prune()
    settle()
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    records = [trial_record(t, Fields(), study.study_name, study.direction) for t in done]
    calls = iter(range(10**6))

    def fit_another() -> None:
        if not any(t.name == "metaopt-law" for t in threading.enumerate()):
            n = next(calls)
            refits.prepare([r for r in records if r is not None][n + 1 :], allow_weak=False)

    benchmark.group = group("should_prune while a law is fitted", study)
    benchmark.pedantic(trial.should_prune, setup=fit_another, rounds=30)
    study.tell(trial, state=TrialState.FAIL)
    settle()


COLD = """
import sys, time
import optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
url, module, name, number = sys.argv[1:]
study = optuna.load_study(study_name="bench", storage=url)
trial = optuna.Trial(study, study.get_trials(deepcopy=False)[int(number)]._trial_id)
begin = time.process_time()
study.pruner = getattr(__import__(module, fromlist=[name]), name)()
trial.should_prune()
print(time.process_time() - begin)
"""


@pytest.mark.parametrize("name", PRUNERS)
def test_first_call_of_a_new_process(benchmark: Any, study: optuna.Study, name: str) -> None:
    """With imports and reading the study; printed is the processor time without that: records and one fit."""
    storage = _compat.storage_of(study)
    if isinstance(storage, InMemoryStorage):
        pytest.skip("a study in memory has one process")
    trial = running_trial(study, 0.01)
    module = "metaopt_hpo_optuna" if name == "ScalingLawPruner" else "optuna.pruners"
    command = [sys.executable, "-c", COLD, storage._backend.url, module, name, str(trial.number)]  # type: ignore[attr-defined]
    seconds: list[float] = []

    def once() -> None:
        seconds.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))

    benchmark.group = group("first call of a new process", study)
    benchmark.pedantic(once, rounds=3)
    print(f"{benchmark.group}: {name} {sorted(seconds)[1]:.2f} s of processor time once the study is read")
    study.tell(trial, state=TrialState.FAIL)


@pytest.mark.parametrize("name", SAMPLERS)
def test_ask(benchmark: Any, study: optuna.Study, name: str) -> None:
    study.sampler = SAMPLERS[name]()

    def ask() -> None:
        trial = study.ask()
        for key, value in {"size": SIZES[-1], "tokens": TOKENS, "batch": BATCH}.items():
            trial.set_user_attr(key, value)
        trial.suggest_float("lr", LR.low, LR.high, log=True)
        study.tell(trial, state=TrialState.FAIL)

    benchmark.group = group("ask", study)
    benchmark.pedantic(ask, rounds=15, warmup_rounds=2)
