"""Several workers at one study, in threads: no trial is lost and none fails."""

from __future__ import annotations

import math

import optuna

from metaopt_hpo_optuna import ScalingLawPruner, ScalingLawSampler

SIZES = (1e6, 4e6, 1.6e7, 6.4e7)
TRIALS = 32


def objective(trial: optuna.Trial) -> float:
    size = SIZES[trial.number * len(SIZES) // TRIALS % len(SIZES)]
    for name, value in (("size", size), ("tokens", 20 * size), ("batch", 65536)):
        trial.set_user_attr(name, value)
    lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
    final = 1.7 + 300 * size**-0.35 + 0.03 * math.log(lr / (0.8 * size**-0.3)) ** 2
    for part in (1 / 16, 1 / 4, 1 / 2):
        trial.report(final * (1 + 0.1 * (part**-0.5 - 1)), round(20 * size * part))
        if trial.should_prune():
            raise optuna.TrialPruned
    return final


def test_four_threads_share_a_study_sampler_and_pruner() -> None:
    study = optuna.create_study(sampler=ScalingLawSampler(seed=0), pruner=ScalingLawPruner())
    study.optimize(objective, n_trials=TRIALS, n_jobs=4)
    assert [t.number for t in study.trials] == list(range(TRIALS))
    assert all(t.state.name in ("COMPLETE", "PRUNED") for t in study.trials)
    assert all(1e-5 <= t.params["lr"] <= 1e-1 for t in study.trials)
