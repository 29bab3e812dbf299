"""A callback that makes a Hugging Face Trainer run a trial: token-grid reports, pruning, record, resumption."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from optuna.trial import Trial

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.training import model_size
from metaopt_hpo_optuna.reporter import Point, TrialReporter

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError(
        "metaopt_hpo_optuna.huggingface needs transformers, which is not installed; run: pip install transformers"
    ) from error


class TrialTrainerCallback(TrainerCallback):
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
        lease: seconds of silence after which `retry_lost_trials` may queue the trial again, as in `TrialRun`.
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
        self._trial = trial
        self._batch = tokens_per_step
        self._size = size
        self._metric = metric
        self._strategy = strategy
        self._lease = lease
        self._reporter: TrialReporter | None = None
        self._grad_norm = math.nan
        self._step_size = math.nan

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Describe the run to the trial, and what of it a checkpoint holds."""
        scheduler = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        self._reporter = TrialReporter(
            self._trial,
            size=model_size(kwargs["model"]) if self._size is None else self._size,
            tokens=state.max_steps * self._batch,
            batch=self._batch,
            lr=args.learning_rate,
            strategy=self._strategy or str(scheduler),
            seed=args.seed,
            lease=self._lease,
        )
        self._reporter.begin(self._logged(state))

    def _logged(self, state: TrainerState) -> list[Point]:
        """The evaluations in the Trainer's own log, which its checkpoints hold."""
        points = []
        for entry in state.log_history:
            self._remember(entry)
            if self._metric in entry:
                tokens = entry["step"] * self._batch
                points.append((tokens, entry[self._metric], self._step_size, self._grad_norm, math.nan))
        return points

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for an evaluation at grid points and at the end."""
        if self._live().due(state.global_step * self._batch) is not None:
            control.should_evaluate = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember what the Trainer measured of the last step."""
        self._remember(kwargs.get("logs") or {})

    def _remember(self, logs: dict[str, Any]) -> None:
        self._grad_norm = float(logs.get("grad_norm", self._grad_norm))
        self._step_size = float(logs.get("learning_rate", self._step_size))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report, and stop where the pruner says so."""
        metrics = kwargs.get("metrics") or {}
        if self._metric not in metrics:
            raise MetaOptError(
                f"the evaluation has no metric {self._metric!r}; it has {', '.join(sorted(metrics))}; "
                "name one with metric=…"
            )
        reason = self._live().report(
            state.global_step * self._batch,
            metrics[self._metric],
            step_size=self._step_size,
            grad_norm=self._grad_norm,
        )
        if reason is not None:
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give up the lease."""
        self._live().close()

    def result(self) -> float:
        """What the objective returns; raises `optuna.TrialPruned` for a run that was stopped or diverged."""
        return self._live().result()

    def _live(self) -> TrialReporter:
        if self._reporter is None:
            raise MetaOptError("the Trainer has not begun to train; call trainer.train() first")
        return self._reporter


def last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The newest whole checkpoint in a Trainer's output folder, None where there is none.

    The Trainer writes its state last, so a checkpoint in whose writing the worker died has none that can be read.
    """
    found = []
    for state in Path(folder).glob("checkpoint-*/trainer_state.json"):
        try:
            found.append(
                (int(json.loads(state.read_text(encoding="utf-8"))["global_step"]), str(state.parent))
            )
        except (ValueError, KeyError, TypeError, OSError, RecursionError):
            continue
    return max(found)[1] if found else None
