"""Ways to train inside a framework that are not the plainest: manual optimization, early stops, a run as it is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metaopt_hpo import wrap
from metaopt_hpo.strategies import StrategyError
from metaopt_hpo.strategies.as_optimizer import NoLoss

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)
X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :1].abs()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))


def numbers(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# -- Lightning -------------------------------------------------------------------------------------------------


def fit(ways: dict[str, Any], callbacks: tuple[Any, ...] = ()) -> Any:
    """A small module with some of its methods replaced, trained for three epochs of eight steps."""
    pl = pytest.importorskip("lightning.pytorch")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Student(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.automatic_optimization = ways.get("automatic", True)

        def loss(self, batch: Any) -> torch.Tensor:
            value: torch.Tensor = (self.net(batch[0]) - batch[1]).square().mean()
            return value

        def training_step(self, batch: Any, index: int) -> Any:
            return ways.get("step", lambda module, batch: module.loss(batch))(self, batch)

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("held_out", self.loss(batch))

        def configure_optimizers(self) -> Any:
            self.run = wrap(
                torch.optim.AdamW(self.parameters()), self.trainer.estimated_stepping_batches, self
            )
            return ways.get("gives", lambda run: run.as_optimizer())(self.run)

    module = Student()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=8)
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks))  # fmt: skip
    trainer.fit(module, loader, loader)
    return module


def by_hand(module: Any, batch: Any) -> None:
    optimizer = module.optimizers()
    loss = module.loss(batch)
    optimizer.zero_grad()
    module.manual_backward(loss)
    optimizer.step()


def by_closure(module: Any, batch: Any) -> None:
    optimizer = module.optimizers()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = module.loss(batch)
        module.manual_backward(loss)
        return loss

    optimizer.step(closure=closure)


def test_manual_optimization_takes_the_same_steps_as_automatic() -> None:
    automatic = fit({})
    closure = fit({"automatic": False, "step": by_closure})
    assert automatic.run.steps_taken == automatic.run.horizon == 24
    assert torch.equal(numbers(automatic), numbers(closure))
    with pytest.warns(NoLoss, match="no loss reaches this run"):
        hand = fit({"automatic": False, "step": by_hand})
    assert hand.run.steps_taken == 24


def test_early_stopping_of_lightning_ends_a_run_without_an_error() -> None:
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    module = fit({}, (callbacks.EarlyStopping("held_out", patience=1, min_delta=100.0),))
    assert module.run.steps_taken == 16 < module.run.horizon
    assert module.run.ends_low, "so that the process says at its end that the run was left early"


def test_a_scheduler_beside_it_that_waits_for_a_metric_changes_nothing() -> None:
    def gives(run: Any) -> Any:
        optimizer = run.as_optimizer()
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "held_out"}}

    assert torch.equal(numbers(fit({"gives": gives})), numbers(fit({})))


# -- Hugging Face ----------------------------------------------------------------------------------------------


def test_early_stopping_of_trainer_with_accumulation_that_does_not_divide_the_epoch(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from metaopt_hpo.training import horizon_of

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            out = self.net(x)
            return {"loss": (out - labels).square().mean(), "logits": out}

    data = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=5, per_device_train_batch_size=8, gradient_accumulation_steps=3,
        eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, report_to="none",
        metric_for_best_model="eval_loss", disable_tqdm=True, use_cpu=True, logging_strategy="no",
    )  # fmt: skip
    model = Net()
    run = wrap(torch.optim.AdamW(model.parameters()), horizon_of(arguments, len(data)), model)
    stop = transformers.EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=100.0)
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=data,
        eval_dataset=data,
        optimizers=run.as_optimizers(),
        callbacks=[stop],
    )
    trainer.train()
    assert run.horizon == 15
    assert run.steps_taken == trainer.state.global_step == 6


def test_adafactor_as_trainer_makes_it_is_wrapped_where_its_lr_counts() -> None:
    transformers = pytest.importorskip("transformers")
    model = net()
    with pytest.raises(StrategyError, match="relative_step=False"):
        wrap(transformers.Adafactor(model.parameters()), 10)
    with pytest.raises(StrategyError, match="scale_parameter=False"):
        wrap(transformers.Adafactor(model.parameters(), lr=1e-3, relative_step=False), 10)
    plain = transformers.Adafactor(model.parameters(), lr=1e-3, relative_step=False, scale_parameter=False)
    with pytest.warns(match="has not been compared"):
        run = wrap(plain, 40)
    losses = []
    for _ in range(40):
        loss = (model(X) - Y).square().mean()
        loss.backward()
        run.step(loss)
        losses.append(loss.item())
    assert losses[-1] < losses[0]


# -- accelerate ------------------------------------------------------------------------------------------------


def test_a_run_given_to_accelerate_says_what_to_give_instead() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = net()
    run = wrap(torch.optim.AdamW(model.parameters()), 10)
    _, given = accelerate.Accelerator(cpu=True).prepare(model, run)
    with pytest.raises(AttributeError, match=r"give run\.as_optimizer"):
        given.zero_grad()
