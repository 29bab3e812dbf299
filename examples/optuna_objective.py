"""An Optuna objective whose learning rate is found in one trial, beside TPE's search for it.

Runs in some seconds. A trial is the mean of three runs, for seeds of so small a task differ by tens of per cent. Three
lines are new in an objective that suggests lr, the import, the wrap and the step;
`trial.set_user_attr("found_lr", run.found_lr)` would keep what was found.
"""

from __future__ import annotations

import optuna
import torch

from metaopt_hpo import wrap

STEPS, TRIALS, SEEDS = 300, 8, 3
X = torch.randn(2048, 8, generator=torch.Generator().manual_seed(0))
Y = (X[:, :4] * X[:, 4:]).sum(1, keepdim=True)
HELD_OUT = 512


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))


def loss_of(model: torch.nn.Module, step: int) -> torch.Tensor:
    rows = torch.randint(HELD_OUT, len(X), (64,), generator=torch.Generator().manual_seed(step))
    return (model(X[rows]) - Y[rows]).square().mean()


def held_out(model: torch.nn.Module) -> float:
    with torch.no_grad():
        return (model(X[:HELD_OUT]) - Y[:HELD_OUT]).square().mean().item()


def searched(trial: optuna.Trial) -> float:
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    ends = []
    for seed in range(SEEDS):
        model = network(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for step in range(STEPS):
            loss = loss_of(model, step)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        ends.append(held_out(model))
    return sum(ends) / SEEDS


def found(trial: optuna.Trial) -> float:
    ends = []
    for seed in range(SEEDS):
        model = network(seed)
        run = wrap(torch.optim.AdamW(model.parameters()), horizon=STEPS, model=model)  # its lr is found
        for step in range(STEPS):
            loss = loss_of(model, step)
            loss.backward()
            run.step(loss)  # in the place of optimizer.step(), zero_grad() and the scheduler
        ends.append(held_out(model))
    return sum(ends) / SEEDS


def main() -> tuple[float, float]:
    """Return the held-out loss of (ours, the best of the search) after printing both."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    search.optimize(searched, n_trials=TRIALS)
    one = optuna.create_study()
    one.optimize(found, n_trials=1)
    print(
        f"held-out loss: AdamW with a cosine, best of {TRIALS} trials of TPE {search.best_value:.4f} at lr "
        f"{search.best_params['lr']:.1e}; one wrapped trial {one.best_value:.4f}"
    )
    return one.best_value, search.best_value


if __name__ == "__main__":
    main()
