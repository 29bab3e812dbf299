"""Workers that begin at once on a fresh file: all trials are made, and then all decide the same of the same trial."""

from __future__ import annotations

import json
import math
import multiprocessing
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution

from metaopt_hpo_optuna import ScalingLawPruner, ScalingLawSampler
from metaopt_hpo_optuna.store import open_store

LR = FloatDistribution(1e-4, 1e-1, log=True)
TRIALS = 10
"""Of each worker."""
END = 240.0


def objective(trial: optuna.Trial) -> float:
    n = (1e6, 4e6, 16e6)[trial.suggest_int("i", 0, 2)]
    for name, value in {"size": n, "tokens": 20 * n, "batch": 32.0}.items():
        trial.set_user_attr(name, value)
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    loss = 1.7 + 300 * n**-0.35 + 0.03 * math.log(lr / (0.8 * n**-0.3)) ** 2
    for k in range(1, 5):
        trial.report(loss * (1 + 1 / k), int(20 * n * k / 4))
        if trial.should_prune():
            raise optuna.TrialPruned
    return loss


def wait_for(study: optuna.Study, trials: int) -> None:
    end = time.monotonic() + END
    while sum(t.state.is_finished() for t in study.get_trials(deepcopy=False)) < trials:
        assert time.monotonic() < end
        time.sleep(0.05)


def work(me: int, workers: int, store: str, begin: object, out: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler, pruner = ScalingLawSampler(seed=0), ScalingLawPruner()
    begin.wait(END)  # type: ignore[attr-defined]
    study = optuna.create_study(
        study_name="s", storage=open_store(store), load_if_exists=True, sampler=sampler, pruner=pruner
    )
    study.optimize(objective, n_trials=TRIALS, n_jobs=4 if me == 0 else 1)
    wait_for(study, workers * TRIALS)
    if me == 0:
        probe = study.ask()
        for name, value in {"size": 16e6, "tokens": 320e6, "batch": 32.0, "lr": 0.05}.items():
            probe.set_user_attr(name, value)
        for k in (1, 2):
            probe.report(9.0, int(320e6 * k / 4))
        probe.set_user_attr("ready", True)
    end, frozen = time.monotonic() + END, None
    while frozen is None:
        assert time.monotonic() < end
        time.sleep(0.05)
        frozen = next((t for t in study.get_trials() if "ready" in t.user_attrs), None)
    del frozen.user_attrs["lr"]
    # threads of n_jobs draw of their own: its first worker asks a sampler that has drawn nothing
    own = ScalingLawSampler(seed=0) if me == 0 else sampler
    rates = [s.sample_independent(study, frozen, "lr", LR) for s in (own, ScalingLawSampler(seed=0), own)]
    frozen.user_attrs["lr"] = 0.05
    stops = [p.prune(study, frozen) for p in (pruner, ScalingLawPruner(), pruner)]
    out.write_text(json.dumps([rates, stops]))


def check(workers: int, folder: Path) -> None:
    forked = multiprocessing.get_context("fork")
    begin = forked.Barrier(workers)
    files = [folder / f"{i}.json" for i in range(workers)]
    started = [
        forked.Process(target=work, args=(i, workers, str(folder / "s.sqlite"), begin, files[i]))
        for i in range(workers)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(2 * END)
    assert [p.exitcode for p in started] == [0] * workers
    answers = [json.loads(f.read_text()) for f in files]
    assert len({v for rates, _ in answers for v in rates}) == 1, answers
    assert len({stop for _, stops in answers for stop in stops}) == 1, answers


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks workers that share what is loaded")
def test_three_workers_decide_alike(tmp_path: Path) -> None:
    check(3, tmp_path)


@pytest.mark.sweep
@pytest.mark.skipif(sys.platform != "linux", reason="forks workers that share what is loaded")
def test_eight_workers_decide_alike(tmp_path: Path) -> None:
    check(8, tmp_path)
