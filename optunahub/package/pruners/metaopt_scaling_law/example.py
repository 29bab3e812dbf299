import optuna
import optunahub

module = optunahub.load_module("pruners/metaopt_scaling_law")


def objective(trial):
    size = trial.suggest_categorical("size", [1e6, 4e6, 16e6])
    tokens = 2**20
    trial.set_user_attr("tokens", tokens)
    trial.set_user_attr("batch", 4096)
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    for k in range(6, -1, -1):  # train your model here
        seen = tokens // 2**k
        loss = (2 + abs(lr - 1e-2 * (size / 1e6) ** -0.4)) * (1 + 8 * seen**-0.5)
        trial.report(loss, step=seen)
        if trial.should_prune():
            raise optuna.TrialPruned
    return loss


study = optuna.create_study(pruner=module.ScalingLawPruner(wrapped=optuna.pruners.MedianPruner()))
study.optimize(objective, n_trials=20)
