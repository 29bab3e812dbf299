"""An existing Optuna objective with metaopt-hpo: small models teach, the large one is tried where they point.

Run it with `python examples/optuna_quickstart.py`; it needs `pip install "metaopt-hpo[optuna,workloads]"`.
"""

import optuna

from metaopt_hpo.workloads import TextLM
from metaopt_hpo_optuna import ScalingLawPruner, ScalingLawSampler, TrialRun, suggest_strategy

TOKENS = 65_536


def objective(trial: optuna.Trial) -> float:
    job = TextLM(width=trial.suggest_categorical("width", [8, 16, 24, 48]))  # your model and data
    model = job.model(seed=0)
    for name, value in {"size": job.size, "tokens": TOKENS, "batch": job.batch}.items():
        trial.set_user_attr(name, value)  # what a law needs to know before lr is suggested
    strategy = suggest_strategy(trial, {"cosine": {"lr": (1e-3, 3e-1)}, "metaoptimize": {}})
    with TrialRun(
        trial, model, strategy, size=job.size, tokens=TOKENS, batch=job.batch,
        evaluate=lambda: job.held_out_loss(model),
    ) as run:  # fmt: skip
        for step in run:  # your training loop
            run.step(*job.losses(model, step, seed=0, parts=1))
    return run.value


if __name__ == "__main__":
    study = optuna.create_study(sampler=ScalingLawSampler(seed=0), pruner=ScalingLawPruner())
    for width in (8, 16, 24):  # cheap: five learning rates at each small size
        for _ in range(5):
            study.enqueue_trial({"width": width, "strategy": "cosine"})
    study.enqueue_trial({"width": 48, "strategy": "cosine"})  # the law chooses its lr
    study.enqueue_trial({"width": 48, "strategy": "metaoptimize"})  # needs no lr at all
    study.optimize(objective, n_trials=17)
    for trial in study.trials[-2:]:
        print(trial.params, f"loss {trial.value:.3f}")
