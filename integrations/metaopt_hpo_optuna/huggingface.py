"""A callback that makes a Hugging Face Trainer run a trial: token-grid reports, pruning, record, resumption."""

from __future__ import annotations

from functools import partial

from optuna.trial import Trial

from metaopt_hpo.training.trainer_callback import ReportedTrainer, last_checkpoint
from metaopt_hpo_optuna.reporter import TrialReporter

__all__ = ["TrialTrainerCallback", "last_checkpoint"]


class TrialTrainerCallback(ReportedTrainer[TrialReporter]):
    """Evaluates on the shared token grid, reports to the trial, and stops the Trainer when the pruner says so.

        folder = trial_folder(trial, "checkpoints/")  # of metaopt_hpo_optuna
        callback = TrialTrainerCallback(trial, tokens_per_step=64 * 1024)
        args = TrainingArguments(output_dir=folder, save_steps=100, learning_rate=lr, …)
        trainer = Trainer(model, args, train_dataset=train, eval_dataset=held_out, callbacks=[callback])
        trainer.train(resume_from_checkpoint=last_checkpoint(folder))
        return callback.result()

    A retry of a trial whose worker died finds its predecessor's folder, goes on from the last whole checkpoint and
    reports again what was reported before it. A run to which the law gives no chance is not begun: `train` raises
    `optuna.TrialPruned`.

    Under torchrun every rank makes the callback, rank 0 with the trial and the others with None: call
    `torch.distributed.init_process_group` first, suggest on rank 0, and share with
    `metaopt_hpo.training.distributed.from_rank_0`. Rank 0 decides, and all ranks stop together.

    Args:
        trial: the trial; None on ranks other than 0.
        tokens_per_step: tokens (examples, where there are none) of an optimizer step, over all devices.
        size: trainable non-embedding parameters; default counted from the model, embeddings left out.
        metric: which evaluation metric is reported.
        strategy: name of what sets lr; default the Trainer's scheduler.
        lease: seconds of silence after which `retry_stale_trials` may queue the trial again, as in `TrialRun`.
    """

    def __init__(
        self,
        trial: Trial | None,
        *,
        tokens_per_step: float,
        size: float | None = None,
        metric: str = "eval_loss",
        strategy: str | None = None,
        lease: float | None = None,
    ) -> None:
        begin = partial(TrialReporter, trial, lease=lease)
        super().__init__(begin, tokens_per_step=tokens_per_step, size=size, metric=metric, strategy=strategy)

    def result(self) -> float:
        """What the objective returns; raises `optuna.TrialPruned` for a run that was stopped or diverged."""
        return self.run.result()
