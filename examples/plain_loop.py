"""A plain training loop in which the learning rate is not chosen, beside the same loop with AdamW at torch's default.

Runs in a few seconds. Three lines differ: the import, the wrap and the step.
"""

import torch

from metaopt_hpo import wrap

STEPS = 200
X = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))


def with_adamw() -> float:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(STEPS):
        loss = (model(X) - Y).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def with_wrap() -> tuple[float, float]:
    model = network()
    run = wrap(torch.optim.AdamW(model.parameters()), horizon=STEPS, model=model)  # its lr is found
    for _ in range(STEPS):
        loss = (model(X) - Y).square().mean()
        loss.backward()
        run.step(loss)  # in the place of optimizer.step() and optimizer.zero_grad()
    return loss.item(), float(run.found_lr)


def main() -> tuple[float, float]:
    """Return the last loss of (ours, AdamW's) after printing both."""
    theirs = with_adamw()
    ours, found = with_wrap()
    print(
        f"loss after {STEPS} steps: AdamW at lr 1e-3 {theirs:.4f}; wrapped {ours:.4f}, which found lr {found:.1e}"
    )
    return ours, theirs


if __name__ == "__main__":
    main()
