"""Trials of a known law in a study, and what a pruner decides about one."""

from __future__ import annotations

import math

import optuna
from optuna.study import Study
from optuna.trial import Trial

from metaopt_hpo.trials.record import token_grid

TOKENS = 2**16


GRID = token_grid(TOKENS, start=2**10, stride=4)


SMALL = (1e4, 2e4, 4e4)


LARGE = 1e5


def final_loss(size: float, lr: float) -> float:
    x = math.log(lr / (0.03 * (size / 1e4) ** -0.4))
    return 2.0 + 2.0 * (size / 1e4) ** -0.3 + 0.15 * x * x


def loss_at(size: float, lr: float, t: float) -> float:
    return final_loss(size, lr) * (1 + 6.0 * (t**-0.5 - TOKENS**-0.5))


def fill(
    study: Study, sizes: tuple[float, ...] = SMALL, lrs: tuple[float, ...] = (3e-3, 1e-2, 2e-2, 5e-2, 0.2)
) -> None:
    """Finished trials of these sizes, in the study's own direction."""
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    for size in sizes:
        for lr in lrs:
            study.add_trial(
                optuna.create_trial(
                    value=sign * final_loss(size, lr),
                    params={"lr": lr},
                    distributions={"lr": optuna.distributions.FloatDistribution(1e-4, 1.0, log=True)},
                    user_attrs={"size": size, "tokens": TOKENS, "batch": 512},
                    intermediate_values={t: sign * loss_at(size, lr, t) for t in GRID},
                )
            )


def begin(study: Study, lr: float = 1.0, size: float = LARGE, **attributes: float) -> Trial:
    study.enqueue_trial({"lr": lr})
    trial = study.ask()
    for name, value in {"size": size, "tokens": TOKENS, "batch": 512, **attributes}.items():
        trial.set_user_attr(name, value)
    trial.suggest_float("lr", 1e-4, 1.0, log=True)
    return trial


def decide(study: Study, trial: Trial, values: list[float], steps: list[int] = GRID) -> list[bool]:
    """Report values until the pruner stops the trial; its decision after each."""
    out = []
    for step, value in zip(steps, values, strict=False):
        trial.report(value, step)
        out.append(trial.should_prune())
        if out[-1]:
            break
    return out
