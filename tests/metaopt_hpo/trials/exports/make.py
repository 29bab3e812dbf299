"""Write the exports that the readers are tested on, each with the tool itself: `python make.py [TOOL …]`.

Four runs each, of two sizes and two learning rates; the last one stops early where the tool can say so.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPORTS = 4
RUNS = [
    {"size": n, "tokens": 20 * n, "batch": 65536, "lr": lr}
    for n in (1_000_000, 4_000_000)
    for lr in (1e-3, 1e-2)
]


def loss(run: dict[str, Any], part: float) -> float:
    """The loss of a run after a part of its tokens."""
    optimum = 0.8 * run["size"] ** -0.3
    return 1.7 + 300 * run["size"] ** -0.35 * part**-0.1 + 0.03 * math.log(run["lr"] / optimum) ** 2


def reports(run: dict[str, Any]) -> list[tuple[int, int, float]]:
    """(step, tokens seen, loss) of each report."""
    steps = run["tokens"] // run["batch"]
    return [
        (steps * k // REPORTS, run["tokens"] * k // REPORTS, loss(run, k / REPORTS))
        for k in range(1, REPORTS + 1)
    ]


def tensorboard(folder: Path) -> None:
    """tensorboardX, with the settings as its hparams."""
    from tensorboardX import SummaryWriter

    for i, run in enumerate(RUNS):
        with SummaryWriter(str(folder / f"run{i}")) as writer:
            for step, seen, value in reports(run):
                writer.add_scalar("eval/loss", value, step)
                writer.add_scalar("tokens_seen", seen, step)
            writer.add_hparams(run, {"hparam/loss": value})


def wandb(folder: Path) -> None:
    """Runs logged offline; the last one crashes."""
    import wandb

    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    folder.mkdir()
    for i, run in enumerate(RUNS):
        session = wandb.init(
            project="sweep",
            dir=str(folder),
            config=run,
            id=f"run{i}",
            settings=wandb.Settings(console="off", x_disable_stats=True),
        )
        for step, seen, value in reports(run)[: 2 if i == 3 else None]:
            session.log({"eval/loss": value, "tokens_seen": seen}, step=step)
        session.finish(exit_code=1 if i == 3 else 0)
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".wandb":
            path.unlink()


def mlflow(folder: Path) -> None:
    """A local file store; the last run fails."""
    import mlflow

    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    mlflow.set_tracking_uri(folder.resolve().as_uri())
    mlflow.set_experiment("sweep")
    for i, run in enumerate(RUNS):
        mlflow.start_run(run_name=f"run{i}")
        mlflow.log_params(run)
        for step, seen, value in reports(run)[: 2 if i == 3 else None]:
            mlflow.log_metrics({"val_loss": value, "tokens_seen": seen}, step=step)
        mlflow.end_run("FAILED" if i == 3 else "FINISHED")


def transformers(folder: Path) -> None:
    """Trainer on a small model, with evaluations and the tokens it has seen."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    torch.manual_seed(0)
    ids = torch.randint(0, 32, (64, 16))
    data = [{"input_ids": row, "labels": row} for row in ids]
    for i, lr in enumerate((1e-3, 1e-2)):
        config = LlamaConfig(
            vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
        arguments = TrainingArguments(
            output_dir=str(folder / f"run{i}"), learning_rate=lr, max_steps=8, per_device_train_batch_size=4,
            eval_strategy="steps", eval_steps=2, logging_steps=2, save_steps=8, report_to=[], use_cpu=True,
            include_num_input_tokens_seen=True, warmup_steps=0,
        )  # fmt: skip
        Trainer(
            model=LlamaForCausalLM(config), args=arguments, train_dataset=data, eval_dataset=data[:16]
        ).train()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("trainer_state.json", "config.json"):
            path.unlink()


def lightning(folder: Path) -> None:
    """CSVLogger under Lightning's Trainer, with saved hyperparameters."""
    import torch
    from lightning.pytorch import LightningModule, Trainer, seed_everything
    from lightning.pytorch.loggers import CSVLogger

    seed_everything(0)

    class Model(LightningModule):
        def __init__(self, size: int, tokens: int, batch: int, lr: float) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch: Any, index: int) -> Any:
            value = self.layer(batch[0]).square().mean()
            self.log("train_loss", value)
            return value

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val_loss", self.layer(batch[0]).square().mean() + 1)
            self.log("tokens_seen", float(self.hparams["batch"] * self.global_step))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(32, 4)), batch_size=4)
    for run in RUNS:
        run = run | {"tokens": 65536 * 16}
        trainer = Trainer(
            max_epochs=2, logger=CSVLogger(str(folder), name="lightning_logs"), log_every_n_steps=4, accelerator="cpu",
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Model(**run), loader, loader)


def ray(folder: Path) -> None:
    """A Tune experiment whose last trial reports less, with a nested metric."""
    import ray
    from ray import tune

    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "0"

    def train(config: dict[str, Any]) -> None:
        told = reports(config)
        for step, seen, value in told[: 2 if config["size"] > 1e6 and config["lr"] > 5e-3 else None]:
            tune.report({"loss": value, "tokens_seen": seen, "eval": {"step": step}})

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        tune.Tuner(
            train,
            param_space={
                "size": tune.grid_search([1_000_000, 4_000_000]),
                "tokens": tune.sample_from(lambda spec: 20 * spec.config.size),
                "batch": 65536,
                "lr": tune.grid_search([1e-3, 1e-2]),
            },
            run_config=tune.RunConfig(name="sweep", storage_path=str(folder.resolve()), verbose=0),
        ).fit()
    finally:
        ray.shutdown()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("params.json", "result.json", "progress.csv"):
            path.unlink()


def optuna(folder: Path) -> None:
    """A study in SQLite, in a journal and as a data frame; one trial is pruned, one fails."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder.mkdir()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for storage in (
        f"sqlite:///{folder}/study.db",
        JournalStorage(JournalFileBackend(str(folder / "study.log"))),
    ):
        study = optuna.create_study(study_name="sweep", storage=storage)

        def objective(trial: optuna.Trial) -> float:
            run = RUNS[trial.number % 4] | {"lr": trial.suggest_float("lr", 1e-4, 1e-1, log=True)}
            for name in ("size", "tokens", "batch"):
                trial.set_user_attr(name, run[name])
            for _, seen, value in reports(run):
                trial.report(value, seen)
                if trial.number == 4:
                    raise optuna.TrialPruned
                if trial.number == 5:
                    raise RuntimeError
            return value

        for i in range(6):
            study.enqueue_trial({"lr": RUNS[i % 4]["lr"]})
        study.optimize(objective, n_trials=6, catch=RuntimeError)
        study.trials_dataframe().to_csv(folder / "trials.csv", index=False)


TOOLS: dict[str, Callable[[Path], None]] = {
    f.__name__: f for f in (tensorboard, wandb, mlflow, transformers, lightning, ray, optuna)
}


if __name__ == "__main__":
    for tool in sys.argv[1:] or TOOLS:
        shutil.rmtree(HERE / tool, ignore_errors=True)
        TOOLS[tool](HERE / tool)
        for empty in sorted((p for p in (HERE / tool).rglob("*") if p.is_dir()), reverse=True):
            if not any(empty.iterdir()):
                empty.rmdir()
