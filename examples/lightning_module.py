"""Lightning without a learning rate: return a wrapped optimizer from configure_optimizers.

Runs offline in a few seconds: a small network learns a random teacher, beside AdamW at torch's default lr.
"""

from __future__ import annotations

import logging
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from metaopt_hpo import wrap


class Student(lightning.LightningModule):
    """A regression model."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters())


class Wrapped(Student):
    """The same, its lr found: monitors see the live step size, checkpoints resume it exactly."""

    def configure_optimizers(self) -> Any:
        self.run = wrap(torch.optim.AdamW(self.parameters()), self.trainer.estimated_stepping_batches, self)
        return self.run.as_optimizer()


def train(kind: type[Student]) -> tuple[float, Student]:
    """Train and return the loss on the data, and the module."""
    lightning.seed_everything(0, verbose=False)
    x = torch.randn(512, 8)
    teacher = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    y = teacher(x).detach()
    module = kind()
    trainer = lightning.Trainer(
        max_epochs=25,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=64))
    with torch.no_grad():
        return nn.functional.mse_loss(module.net(x), y).item(), module


def main() -> tuple[float, float]:
    """Return the loss of (ours, AdamW's) after printing both."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    theirs, _ = train(Student)
    ours, module = train(Wrapped)
    found = float(module.run.found_lr)
    print(
        f"loss after 200 steps: AdamW at lr 1e-3 {theirs:.5f}; wrapped {ours:.5f}, which found lr {found:.1e}"
    )
    return ours, theirs


if __name__ == "__main__":
    main()
