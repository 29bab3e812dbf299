"""accelerate without a learning rate: prepare the run's optimizer, with gradient accumulation and clipping as ever.

Runs offline in a few seconds, beside AdamW at torch's default lr. The horizon counts optimizer steps.
"""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator

from metaopt_hpo import wrap

EPOCHS, ACCUMULATE = 25, 2
X = torch.randn(1024, 8, generator=torch.Generator().manual_seed(0))
Y = X.abs().sum(1, keepdim=True)


def train(found: bool) -> tuple[float, float]:
    """Train and return the loss on the data, and the learning rate at the peak."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=64, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters())
    if found:
        run = wrap(optimizer, horizon=EPOCHS * math.ceil(len(loader) / ACCUMULATE), model=model)
        optimizer = run.as_optimizer()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for _ in range(EPOCHS):
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = (model(x) - y).square().mean()
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                if found:
                    run.as_optimizer().loss = loss  # for the guard
                optimizer.step()
                optimizer.zero_grad()
    with torch.no_grad():
        return (model(X) - Y).square().mean().item(), float(run.found_lr) if found else 1e-3


def main() -> tuple[float, float]:
    """Return the loss of (ours, AdamW's) after printing both."""
    (theirs, _), (ours, lr) = train(found=False), train(found=True)
    print(
        f"loss after {EPOCHS} epochs: AdamW at lr 1e-3 {theirs:.4f}; wrapped {ours:.4f}, which found lr {lr:.1e}"
    )
    return ours, theirs


if __name__ == "__main__":
    main()
