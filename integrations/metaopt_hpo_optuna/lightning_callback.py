"""A callback that makes a Lightning run a trial: token-grid reports, pruning, record, resumption."""

from __future__ import annotations

from functools import partial

from optuna.trial import Trial

from metaopt_hpo.training.lightning_callback import ReportedLightning
from metaopt_hpo_optuna.reporter import TrialReporter


class TrialLightningCallback(ReportedLightning[TrialReporter]):
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
        lease: seconds of silence after which `retry_stale_trials` may queue the trial again, as in `TrialRun`.
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
        begin = partial(TrialReporter, trial, lease=lease)
        super().__init__(
            begin, size=size, batch=batch, lr=lr, tokens=tokens, monitor=monitor, strategy=strategy
        )

    def result(self) -> float:
        """What the objective returns; raises `optuna.TrialPruned` for a run that was stopped or diverged."""
        return self.run.result()
