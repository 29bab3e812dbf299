"""The reporter and the callbacks for Hugging Face Trainer and Lightning do what TrialRun does."""

from __future__ import annotations

import math
from pathlib import Path

import optuna
import pytest
import torch
from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.trials.record import token_grid
from metaopt_hpo_optuna import trial_table
from metaopt_hpo_optuna.reporter import TrialReporter

STEPS, BATCH = 64, 8
TOKENS = STEPS * BATCH


class StopAt(BasePruner):
    def __init__(self, report: int) -> None:
        self.report = report

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        return len(trial.intermediate_values) >= self.report


def reporter(trial: optuna.Trial, **changes: float) -> TrialReporter:
    return TrialReporter(trial, **{"size": 10.0, "tokens": TOKENS, "batch": BATCH, "lr": 0.1, **changes})  # type: ignore[arg-type]


def run(trial: optuna.Trial, losses: list[float], every: int = 4) -> float:
    report = reporter(trial)
    for step in range(every, STEPS + 1, every):
        if report.report(step * BATCH, losses[min(step // every, len(losses)) - 1]):
            break
    return report.result()


def test_reports_only_on_the_grid_and_at_the_end() -> None:
    study = optuna.create_study()
    study.optimize(lambda t: run(t, [5.0 - 0.1 * i for i in range(16)]), n_trials=1)
    steps = set(study.trials[0].intermediate_values)
    assert steps <= set(token_grid(TOKENS, start=1, stride=2)) | {TOKENS}
    assert max(steps) == TOKENS
    (record,) = trial_table(study).records()
    assert (record.state, record.tokens, record.loss) == ("complete", TOKENS, 3.5)
    assert record.cost == 6 * 10 * TOKENS


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("last", [math.nan, math.inf, 50.0])
def test_divergence_ends_pruned_with_a_finite_value(direction: str, last: float) -> None:
    study = optuna.create_study(direction=direction)
    sign = 1.0 if direction == "minimize" else -1.0
    if direction == "maximize" and last == 50.0:
        pytest.skip("a metric has no scale from which to tell an explosion")
    study.optimize(lambda t: run(t, [sign * 3.0, sign * 2.0, sign * last]), n_trials=1)
    (trial,) = study.trials
    assert trial.state == TrialState.PRUNED
    assert trial.value is not None
    assert math.isfinite(trial.value)
    assert sign * trial.value >= 3.0
    assert "loss is" in trial.user_attrs["metaopt:reason"]


def test_pruning_stops_and_says_why() -> None:
    study = optuna.create_study(pruner=StopAt(2))
    study.optimize(lambda t: run(t, [3.0]), n_trials=1)
    assert len(study.trials[0].intermediate_values) == 2
    assert "StopAt stopped it" in trial_table(study).records()[0].reason


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="size must be a finite number > 0"):
        reporter(optuna.create_study().ask(), size=-1)
    with pytest.raises(ValueError, match="multi-objective"):
        reporter(optuna.create_study(directions=["minimize"] * 2).ask())
    trial = optuna.create_study().ask()
    trial.set_user_attr("lr", 0.2)
    with pytest.raises(ValueError, match=r"already has lr=0\.2"):
        reporter(trial)
    with pytest.raises(MetaOptError, match="evaluate at least once"):
        reporter(optuna.create_study().ask()).result()


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return TOKENS

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        x = torch.randn(4, generator=torch.Generator().manual_seed(int(i)))
        return {"x": x, "labels": x.sum().reshape(1)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 3)
        self.layer = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.layer(x)
        return {"loss": ((out - labels) ** 2).mean() + 1.0, "logits": out}


@pytest.mark.slow
@pytest.mark.parametrize("stop", [None, 3])
def test_hugging_face_trainer(stop: int | None, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from metaopt_hpo_optuna.huggingface import TrialTrainerCallback

    def objective(trial: optuna.Trial) -> float:
        args = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=0.05,
            report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, logging_steps=1,
        )  # fmt: skip
        callback = TrialTrainerCallback(trial, tokens_per_step=BATCH)
        held_out = torch.utils.data.Subset(Rows(), range(16))
        trainer = transformers.Trainer(
            Net(), args, train_dataset=Rows(), eval_dataset=held_out, callbacks=[callback]
        )
        trainer.train()
        assert (trainer.state.global_step == STEPS) == (stop is None)
        return callback.result()

    study = optuna.create_study(pruner=StopAt(stop) if stop else optuna.pruners.NopPruner())
    study.optimize(objective, n_trials=1)
    (record,) = trial_table(study).records()
    assert record.state == ("pruned" if stop else "complete")
    assert (record.size, record.batch, record.lr, record.strategy) == (5.0, BATCH, 0.05, "linear")
    assert record.curve is not None
    assert len(record.curve.tokens) == (stop or len(record.curve.tokens)) > 2
    assert math.isfinite(record.curve.step_size[-1])


@pytest.mark.slow
@pytest.mark.parametrize("stop", [None, 2])
def test_lightning(stop: int | None, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    from metaopt_hpo_optuna.lightning_callback import TrialLightningCallback

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
            return self.net(**batch)["loss"]

        def validation_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
            self.log("val_loss", self.net(**batch)["loss"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.net.layer.parameters(), lr=0.05)

    def objective(trial: optuna.Trial) -> float:
        callback = TrialLightningCallback(trial, size=5, batch=BATCH, lr=0.05)
        trainer = lightning.Trainer(
            max_steps=STEPS, val_check_interval=8, callbacks=[callback], logger=False, accelerator="cpu",
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path,
        )  # fmt: skip
        loader = torch.utils.data.DataLoader(Rows(), batch_size=BATCH)
        held_out = torch.utils.data.DataLoader(torch.utils.data.Subset(Rows(), range(16)), batch_size=16)
        trainer.fit(Module(), loader, held_out)
        assert (trainer.global_step == STEPS) == (stop is None)
        return callback.result()

    study = optuna.create_study(pruner=StopAt(stop) if stop else optuna.pruners.NopPruner())
    study.optimize(objective, n_trials=1)
    (record,) = trial_table(study).records()
    assert record.state == ("pruned" if stop else "complete")
    assert record.curve is not None
    assert len(record.curve.tokens) >= 2
    assert set(record.curve.tokens) <= set(token_grid(TOKENS, stride=2)) | {TOKENS}
