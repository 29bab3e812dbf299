"""MetaOptimize inside PyTorch Lightning: return it from configure_optimizers, with a scheduler if you like.

Runs offline in a few seconds: a small network learns a random teacher.
"""

from __future__ import annotations

import logging

import lightning
import torch
from torch import Tensor, nn

from metaopt_hpo import MetaOptimize


class Student(lightning.LightningModule):
    """A regression model; ``losses`` has the training loss of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
        self.losses: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x), y)
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self):
        optimizer = MetaOptimize(self.named_parameters(), lr=1e-3, meta_lr=2e-2, blocks="layer")
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> tuple[float, float]:
    """Train and return (first loss, last loss)."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(0, verbose=False)
    x = torch.randn(512, 8)
    teacher = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    data = torch.utils.data.TensorDataset(x, teacher(x).detach())
    model = Student()
    trainer = lightning.Trainer(
        max_steps=100,
        max_epochs=-1,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=64))
    first, last = float(model.losses[0]), float(model.losses[-1])
    sizes = trainer.optimizers[0].step_sizes().tolist()
    print(f"loss {first:.3f} -> {last:.3f}; step sizes found: {[f'{size:.2e}' for size in sizes]}")
    return first, last


if __name__ == "__main__":
    main()
