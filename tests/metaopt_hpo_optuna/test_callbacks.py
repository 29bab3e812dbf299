"""The reporter and the callbacks for Hugging Face Trainer and Lightning do what TrialRun does."""

from __future__ import annotations

import math
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.trials.record import token_grid
from metaopt_hpo_optuna import ScalingLawPruner, trial_folder, trial_table
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
    assert steps <= set(token_grid(TOKENS, start=1, stride=1)) | {TOKENS}
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
    with pytest.raises(ValueError, match="only ranks other than 0 of a distributed run have no trial"):
        reporter(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"call torch\.distributed\.init_process_group first"):
        trial_folder(None, "checkpoints")
    trial = optuna.create_study().ask()
    trial.set_user_attr("lr", 0.2)
    with pytest.raises(ValueError, match=r"already has the user attribute lr=0\.2"):
        reporter(trial)
    with pytest.raises(MetaOptError, match="evaluate at least once"):
        reporter(optuna.create_study().ask()).result()


def test_a_run_goes_on_with_what_was_reported_before() -> None:
    study = optuna.create_study(direction="maximize")
    first = reporter(study.ask())
    for step in (4, 8, 16):
        first.report(step * BATCH, -1.0 / step, step_size=0.1)
    again = study.ask()
    second = reporter(again)
    second.begin(first.points())
    assert study.trials[0].intermediate_values == study.trials[1].intermediate_values
    assert second.due(16 * BATCH) is None
    second.report(TOKENS, -0.01)
    second.result()
    curves = [r.curve for r in trial_table(study).records()]
    assert curves[1] is not None
    assert curves[1].step_size[:3] == (0.1, 0.1, 0.1)
    assert curves[1].loss[:3] == (0.25, 0.125, 0.0625)


def test_a_lease_lasts_as_long_as_the_run() -> None:
    study = optuna.create_study()
    report = TrialReporter(study.ask(), size=10.0, tokens=TOKENS, batch=BATCH, lr=0.1, lease=60.0)
    assert study.trials[0].user_attrs["metaopt:lease"] > time.time() + 50
    assert "metaopt-lease" in {t.name for t in threading.enumerate()}
    report.report(TOKENS, 1.0)
    report.result()
    assert "metaopt-lease" not in {t.name for t in threading.enumerate()}


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


def hugging_face(trial: optuna.Trial | None, folder: str, die_at: int | None = None, **options: Any) -> float:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from metaopt_hpo_optuna.huggingface import TrialTrainerCallback, last_checkpoint

    class Dies(transformers.TrainerCallback):  # type: ignore[misc,name-defined]
        def on_step_end(self, args: object, state: Any, control: object, **_: object) -> None:
            if state.global_step == die_at:
                raise SystemExit

    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    args = transformers.TrainingArguments(
        output_dir=folder, max_steps=STEPS, per_device_train_batch_size=BATCH // ranks, learning_rate=0.05,
        report_to=[], save_steps=10, disable_tqdm=True, use_cpu=True, logging_steps=1, **options,
    )  # fmt: skip
    callback = TrialTrainerCallback(trial, tokens_per_step=BATCH)
    held_out = torch.utils.data.Subset(Rows(), range(16))
    trainer = transformers.Trainer(
        Net(), args, train_dataset=Rows(), eval_dataset=held_out, callbacks=[callback, Dies()]
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    return callback.result()


def lightning(trial: optuna.Trial | None, folder: str, die_at: int | None = None, **options: Any) -> float:
    pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    from metaopt_hpo_optuna.lightning_callback import TrialLightningCallback

    class Module(pl.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()
            self.net.embedding.requires_grad_(False)

        def training_step(self, _: object, index: int) -> torch.Tensor:
            if self.global_step == die_at:
                raise SystemExit
            # a function of the step, for plain data loaders do not resume
            batch = [Rows()[self.global_step * BATCH + i] for i in range(BATCH)]
            return self.net(**torch.utils.data.default_collate(batch))["loss"]

        def validation_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
            self.log("val_loss", self.net(**batch)["loss"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.net.layer.parameters(), lr=0.05)

    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    callback = TrialLightningCallback(trial, size=5, batch=BATCH, lr=0.05)
    keep = pl.callbacks.ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=False)
    trainer = pl.Trainer(
        max_steps=STEPS, val_check_interval=4, callbacks=[callback, keep], logger=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(Rows(), batch_size=BATCH // ranks)
    held_out = torch.utils.data.DataLoader(torch.utils.data.Subset(Rows(), range(16)), batch_size=8)
    trainer.fit(Module(), loader, held_out, ckpt_path="last")
    return callback.result()


Train = Callable[..., float]
FRAMEWORKS = [hugging_face, lightning]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [None, 3])
@pytest.mark.parametrize("train", FRAMEWORKS)
def test_a_framework_runs_a_trial(train: Train, stop: int | None, tmp_path: Path) -> None:
    study = optuna.create_study(pruner=StopAt(stop) if stop else optuna.pruners.NopPruner())
    study.optimize(lambda t: train(t, trial_folder(t, tmp_path)), n_trials=1)
    (record,) = trial_table(study).records()
    assert record.state == ("pruned" if stop else "complete")
    assert (record.size, record.batch, record.lr) == (5.0, BATCH, 0.05)
    assert record.tokens == TOKENS if stop is None else record.tokens < TOKENS
    assert record.curve is not None
    assert len(record.curve.tokens) == (stop or len(record.curve.tokens)) > 2
    assert set(record.curve.tokens) <= set(token_grid(TOKENS, stride=1)) | {TOKENS}
    if train is hugging_face:
        assert record.strategy == "linear"
        assert math.isfinite(record.curve.step_size[-1])


@pytest.mark.slow
@pytest.mark.parametrize("train", FRAMEWORKS)
def test_a_retry_goes_on_from_the_frameworks_checkpoint(train: Train, tmp_path: Path) -> None:
    quiet = optuna.create_study()
    quiet.optimize(lambda t: train(t, trial_folder(t, tmp_path / "quiet")), n_trials=1)
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 's.sqlite'}")
    lost = study.ask()
    folder = trial_folder(lost, tmp_path / "runs")
    with pytest.raises(SystemExit):
        train(lost, folder, die_at=45)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        retry = optuna.storages.RetryHeartbeatStaleTrialCallback()
    study.tell(lost, state=TrialState.FAIL)
    # a checkpoint in whose writing the worker died
    broken = Path(folder) / "checkpoint-44"
    broken.mkdir()
    (broken / "trainer_state.json").write_text('{"global_st')
    retry(study, study.trials[0])
    again = study.ask()
    assert trial_folder(again, tmp_path / "elsewhere") == folder
    steps: list[int] = []
    report = again.report
    again.report = lambda value, step: (steps.append(step), report(value, step))[1]  # type: ignore[method-assign,func-returns-value]
    study.tell(again, train(again, folder))
    assert study.trials[1].intermediate_values == pytest.approx(quiet.trials[0].intermediate_values, rel=1e-6)
    assert steps == sorted(set(steps))
    assert [r.state for r in trial_table(study).records()] == ["failed", "complete"]


@pytest.mark.slow
@pytest.mark.parametrize("train", FRAMEWORKS)
def test_a_run_without_a_chance_is_not_begun(train: Train, tmp_path: Path) -> None:
    study = optuna.create_study(pruner=ScalingLawPruner())
    for size in (1.0, 2.0, 4.0):
        best = 10.0 * size**-0.4  # 0.05 is far too small
        for factor in (0.1, 0.3, 1.0, 3.0, 10.0):
            study.add_trial(
                optuna.create_trial(
                    value=2.0 + size**-0.3 + 0.2 * math.log(factor) ** 2,
                    params={"lr": best * factor},
                    distributions={"lr": optuna.distributions.FloatDistribution(1e-6, 1e3)},
                    user_attrs={"size": size, "tokens": TOKENS, "batch": BATCH},
                )
            )
    study.optimize(lambda t: train(t, trial_folder(t, tmp_path)), n_trials=1)
    assert study.trials[-1].state == TrialState.PRUNED
    record = trial_table(study).records()[-1]
    assert record.reason.startswith("not started: ")
    assert (record.tokens, record.cost, record.state) == (0.0, 0.0, "pruned")


def ddp_worker(rank: int, train: Train, folder: str, port: int, results: Any) -> None:
    # what torchrun sets
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", GROUP_RANK="0",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test",
    )  # fmt: skip
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    out: list[object] = []
    for pruner in (StopAt(3), optuna.pruners.NopPruner()):
        study = optuna.create_study(pruner=pruner) if rank == 0 else None
        trial = None if study is None else study.ask()
        place = trial_folder(trial, folder)
        options = {"ddp_backend": "gloo"} if train is hugging_face else {"devices": 2, "strategy": "ddp"}
        try:
            out.append(round(train(trial, place, **options), 12))
        except optuna.TrialPruned as pruned:
            out.append(str(pruned))
        if study is not None:
            out.append(len(study.trials[0].intermediate_values))
    results.put((rank, out))
    torch.distributed.barrier()


@pytest.mark.slow
@pytest.mark.parametrize("train", FRAMEWORKS)
def test_under_ddp_rank_0_decides_and_all_ranks_end_alike(train: Train, tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("fork")
    results = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        context.Process(target=ddp_worker, args=(r, train, str(tmp_path), port, results)) for r in range(2)
    ]
    for worker in workers:
        worker.start()
    found = dict(results.get(timeout=150) for _ in workers)
    for worker in workers:
        worker.join(30)
    assert "StopAt stopped it" in found[1][0]
    assert found[0][1] == 3
    assert [found[0][0], found[0][2]] == found[1]
    assert found[0][3] > 3
