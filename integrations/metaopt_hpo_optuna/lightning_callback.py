"""A callback that makes a Lightning run a trial: token-grid reports, pruning, record, resumption."""

from __future__ import annotations

from typing import Any

from optuna.trial import Trial

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo_optuna.reporter import Point, TrialReporter

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(
        "metaopt_hpo_optuna.lightning_callback needs lightning, which is not installed; run: pip install lightning"
    ) from error


class TrialLightningCallback(Callback):
    """Reports each validation to the trial, at the grid point passed last, and stops when the pruner says so.

        folder = trial_folder(trial, "checkpoints/")  # of metaopt_hpo_optuna
        callback = TrialLightningCallback(trial, size=n, batch=b, lr=lr)
        keep = ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=False)
        trainer = Trainer(max_steps=steps, val_check_interval=50, callbacks=[callback, keep])
        trainer.fit(module, train, held_out, ckpt_path="last")
        return callback.result()

    Validate often enough (`val_check_interval`): what is not validated cannot be reported. The checkpoint above is
    written after each validation, so that it holds what was reported; one that is written before it (with
    `every_n_train_steps`) makes a retry report that point one validation later. A retry of a trial whose
    worker died finds its predecessor's folder, goes on from the last checkpoint and reports again what was reported
    before it. A run to which the law gives no chance is not begun: `fit` raises `optuna.TrialPruned`.

    Under torchrun every rank makes the callback, rank 0 with the trial and the others with None: call
    `torch.distributed.init_process_group` first, suggest on rank 0, and share with
    `metaopt_hpo.training.distributed.from_rank_0`. Rank 0 decides, and all ranks stop together.

    Args:
        trial: the trial; None on ranks other than 0.
        size: trainable non-embedding parameters.
        batch: tokens (examples, where there are none) of an optimizer step, over all devices.
        lr: the knob.
        tokens: planned training tokens; default `max_steps` of the Trainer times `batch`.
        monitor: which logged validation metric is reported.
        strategy: name of what sets lr.
        lease: seconds of silence after which `retry_lost_trials` may queue the trial again, as in `TrialRun`.
    """

    def __init__(
        self,
        trial: Trial | None,
        *,
        size: float,
        batch: float,
        lr: float,
        tokens: float | None = None,
        monitor: str = "val_loss",
        strategy: str = "",
        lease: float | None = None,
    ) -> None:
        self._trial = trial
        self._size = size
        self._batch = batch
        self._lr = lr
        self._tokens = tokens
        self._monitor = monitor
        self._strategy = strategy
        self._lease = lease
        self._earlier: list[Point] = []
        self._reporter: TrialReporter | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe the run to the trial."""
        tokens = self._tokens
        if tokens is None:
            if trainer.max_steps is None or trainer.max_steps < 1:
                raise ValueError("tokens is not known: give tokens=… or Trainer(max_steps=…)")
            tokens = trainer.max_steps * self._batch
        self._reporter = TrialReporter(
            self._trial,
            size=self._size,
            tokens=tokens,
            batch=self._batch,
            lr=self._lr,
            strategy=self._strategy,
            lease=self._lease,
        )
        self._reporter.begin(self._earlier)

    def state_dict(self) -> dict[str, Any]:
        """What was reported so far, for Lightning's checkpoint."""
        return {"points": [] if self._reporter is None else self._reporter.points()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it from there; Lightning calls it before `on_fit_start`."""
        self._earlier = [tuple(point) for point in state_dict["points"]]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give up the lease."""
        if self._reporter is not None:
            self._reporter.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give up the lease."""
        if self._reporter is not None:
            self._reporter.close()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and stop where the pruner says so."""
        if trainer.sanity_checking or self._reporter is None:
            return
        metrics: Any = trainer.callback_metrics
        if self._monitor not in metrics:
            raise MetaOptError(
                f"no metric {self._monitor!r} was logged; there are {', '.join(sorted(metrics))}; log it in "
                "validation_step, or name another with monitor=…"
            )
        reason = self._reporter.report(trainer.global_step * self._batch, float(metrics[self._monitor]))
        if reason is not None:
            trainer.should_stop = True

    def result(self) -> float:
        """What the objective returns; raises `optuna.TrialPruned` for a run that was stopped or diverged."""
        if self._reporter is None:
            raise MetaOptError("Lightning has not begun to train; call trainer.fit first")
        return self._reporter.result()
