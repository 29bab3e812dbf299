import optuna
import optunahub

module = optunahub.load_module("samplers/metaopt_scaling_law")


def objective(trial):
    size = trial.suggest_categorical("size", [1e6, 4e6, 16e6])
    trial.set_user_attr("tokens", 20 * 16e6)
    trial.set_user_attr("batch", 65536)
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    return 3 + (lr - 1e-2 * (size / 1e6) ** -0.4) ** 2  # train your model here


study = optuna.create_study(sampler=module.ScalingLawSampler(seed=0))
study.optimize(objective, n_trials=20)
