"""A Hugging Face Trainer's run as a `ReportedRun`, whichever framework it belongs to."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.training.framework_run import Point, ReportedRun
from metaopt_hpo.training.size import model_size

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError(
        "a Trainer's callback needs transformers, which is not installed; run: pip install transformers"
    ) from error

Run = TypeVar("Run", bound=ReportedRun)


class ReportedTrainer(TrainerCallback, Generic[Run]):
    """Evaluates on the shared token grid, reports to a run, and stops the Trainer when the run says so.

    Args:
        begin: makes the run of size, tokens, batch, lr, strategy and seed, when training begins.
        tokens_per_step: tokens (examples, where there are none) of an optimizer step, over all devices.
        size: trainable non-embedding parameters; default counted from the model, embeddings left out.
        metric: which evaluation metric is reported.
        strategy: name of what sets lr; default the Trainer's scheduler.
    """

    def __init__(
        self,
        begin: Callable[..., Run],
        *,
        tokens_per_step: float,
        size: float | None = None,
        metric: str = "eval_loss",
        strategy: str | None = None,
    ) -> None:
        self._begin = begin
        self._batch = tokens_per_step
        self._size = size
        self._metric = metric
        self._strategy = strategy
        self._run: Run | None = None
        self._grad_norm = math.nan
        self._step_size = math.nan

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Describe the run, and what of it a checkpoint holds."""
        scheduler = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        self._run = self._begin(
            size=model_size(kwargs["model"]) if self._size is None else self._size,
            tokens=state.max_steps * self._batch,
            batch=self._batch,
            lr=args.learning_rate,
            strategy=self._strategy or str(scheduler),
            seed=args.seed,
        )
        self._run.begin(self._logged(state))

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
        if self.run.due(state.global_step * self._batch) is not None:
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
        """Report, and stop where the framework says so."""
        metrics = kwargs.get("metrics") or {}
        if self._metric not in metrics:
            raise MetaOptError(
                f"the evaluation has no metric {self._metric!r}; it has {', '.join(sorted(metrics))}; "
                "name one with metric=…"
            )
        reason = self.run.report(
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
        """Give up what the framework holds for the run."""
        self.run.close()

    @property
    def run(self) -> Run:
        """The run, once the Trainer has begun to train."""
        if self._run is None:
            raise MetaOptError("the Trainer has not begun to train; call trainer.train() first")
        return self._run


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
