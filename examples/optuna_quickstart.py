"""An existing Optuna objective with metaopt-hpo: small models teach, the large one is tried where they point.

Runs in about a minute, beside TPE at the large size for as many training FLOPs. It needs
`pip install "metaopt-hpo[optuna,workloads]"`.
"""

import optuna

from metaopt_hpo.workloads import TextLM
from metaopt_hpo_optuna import ScalingLawPruner, ScalingLawSampler, TrialRun, suggest_strategy, trial_table

TOKENS = 65_536
SMALL, LARGE = (8, 16, 24), 48


def objective(trial: optuna.Trial) -> float:
    width = trial.suggest_categorical("width", [*SMALL, LARGE])
    job = TextLM(width=width, sequences=8)  # your model and data
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


def guided() -> optuna.Study:
    """Five learning rates at each small size, then two runs at the large one."""
    study = optuna.create_study(sampler=ScalingLawSampler(seed=0), pruner=ScalingLawPruner())
    for width in SMALL:
        for _ in range(5):
            study.enqueue_trial({"width": width, "strategy": "cosine"})
    study.enqueue_trial({"width": LARGE, "strategy": "cosine"})  # the law chooses its lr
    study.enqueue_trial({"width": LARGE, "strategy": "metaoptimize"})  # needs no lr at all
    study.optimize(objective, n_trials=17)
    return study


def plain(trials: int) -> optuna.Study:
    """The same objective at the large size alone, with Optuna's own sampler and pruner."""
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=0), pruner=optuna.pruners.MedianPruner()
    )
    for _ in range(trials):
        study.enqueue_trial({"width": LARGE, "strategy": "cosine"})
    study.optimize(objective, n_trials=trials)
    return study


def main() -> tuple[float, float]:
    """Return the loss of (ours, the plain search's best) at the large size after printing both."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ours = guided()
    law, found = ours.trials[-2:]
    costs = [record.cost or 0.0 for record in trial_table(ours).records()]
    theirs = plain(round(sum(costs) / max(costs)))
    print(
        f"loss at width {LARGE}: law's lr {law.params['lr']:.1e} {law.value:.3f}, metaoptimize without lr "
        f"{found.value:.3f}; for the same FLOPs, TPE's best of {len(theirs.trials)} there {theirs.best_value:.3f}"
    )
    return min(t.value for t in (law, found) if t.value is not None), theirs.best_value


if __name__ == "__main__":
    main()
