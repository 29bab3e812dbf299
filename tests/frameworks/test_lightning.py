"""Inside Lightning: horizon from the trainer, resumed bitwise from its checkpoints, monitors see the step size."""

import csv
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metaopt_hpo import wrap
from metaopt_hpo.strategies.errors import RunWarning

pl = pytest.importorskip("lightning.pytorch")
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint  # noqa: E402
from lightning.pytorch.loggers import CSVLogger  # noqa: E402

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Student(pl.LightningModule):
    """A small regression."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return (self.net(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters())
        self.run = wrap(optimizer, self.trainer.estimated_stepping_batches, self)
        return self.run.as_optimizer()


def loader() -> Any:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x[:, :1].abs()), batch_size=8)


def fit(folder: Path, resume: str | None = None, **options: Any) -> tuple[Student, Any]:
    module = Student()
    keep = ModelCheckpoint(folder, every_n_epochs=1, save_top_k=-1)
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=CSVLogger(folder, name="log", version=0),
        log_every_n_steps=1,
        callbacks=[keep, LearningRateMonitor("step")],
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        **options,
    )
    trainer.fit(module, loader(), ckpt_path=resume)
    return module, trainer


def test_epochs_give_the_horizon_monitors_see_the_step_size_and_it_resumes_bitwise(tmp_path: Path) -> None:
    whole = fit(tmp_path)[0]
    assert whole.run.horizon == whole.run.steps_taken == 24
    assert whole.run.guard.state_dict()["first"] > 0  # Lightning's closure gives the guard its loss
    rows = csv.DictReader((tmp_path / "log" / "version_0" / "metrics.csv").open())
    shown = [row["lr-RunOptimizer"] for row in rows]
    assert len(set(shown)) > 8
    saved = next(tmp_path.glob("*step=16.ckpt"))
    resumed, _ = fit(tmp_path / "again", str(saved))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_accumulation_that_does_not_divide_the_epoch(tmp_path: Path) -> None:
    module, _ = fit(tmp_path, accumulate_grad_batches=3)
    assert module.run.steps_taken == module.run.horizon == 9


def test_a_loss_that_is_nan_and_a_horizon_that_is_too_short_are_named(tmp_path: Path) -> None:
    class Broken(Student):
        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return super().training_step(batch, index) * float("nan")

        def configure_optimizers(self) -> Any:
            self.run = wrap(torch.optim.AdamW(self.parameters()), 60, self)
            return self.run.as_optimizer()

    module = Broken()
    trainer = pl.Trainer(max_epochs=8, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    with pytest.warns(RunWarning) as said:
        trainer.fit(module, loader())
    texts = [str(w.message) for w in said if w.category is RunWarning]
    assert [any(part in t for t in texts) for part in ("look at the data", "planned for 60 steps")] == [
        True
    ] * 2
    assert len(texts) == 2
    assert all(p.isfinite().all() for p in module.parameters())
