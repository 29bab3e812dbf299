"""TrialRun: a training run that is a Tune trial, in a function trainable or on the workers of Ray Train."""

from __future__ import annotations

import math
import os
import shutil
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow.fs  # type: ignore[import-untyped]
import ray.train
from ray import tune
from torch import Tensor, nn

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.strategies.base import LRStrategy
from metaopt_hpo.training import checkpoint as checkpoints
from metaopt_hpo.training.distributed import rank
from metaopt_hpo.training.framework_run import FrameworkRun
from metaopt_hpo.trials.logged_results import COST, METRIC, NOTE, PROCESS, PROGRESS, WORK, result_of
from metaopt_hpo.trials.quantities import at
from metaopt_hpo_ray import _compat
from metaopt_hpo_ray.columns import TuneWarning
from metaopt_hpo_ray.older_checkpoints import older_ones

FILE = "run.pt"
"""Name of the file within a Ray checkpoint."""


class TrialRun(FrameworkRun):
    """A run of a model under a strategy, as a trial: what a trainable holds.

        def train(config):
            model = ...
            with TrialRun(config, model, build_strategy(config), size=n, tokens=d, batch=b,
                          evaluate=held_out_loss) as run:
                for step in run:                      # goes on where a checkpoint left off
                    run.step(loss(model, data(step)))

    Reports go to the shared token grid, at most 100 a trial, each with a checkpoint of model, optimizer,
    strategy, data position and random state: a trial that is killed, paused or restored goes on exactly. What
    each process spent is reported apart, so that a trial's cost never goes back with a retry.

    A run that diverges reports once more, with a finite loss twice the untrained model's (searchers choke on
    NaN) and the reason, and the block ends without an error: retrying it would only diverge again.

    In a worker of Ray Train every rank builds the run; rank 0's held-out loss counts, rank 0 saves, and all
    ranks end together. Pass `TuneReportCallback` to the trainer so that Tune sees the reports.

    Args:
        config: the trial's config. Entries named size, tokens, batch or lr must be those of the run.
        model, strategy, size, tokens, batch, evaluate: as `TrainingRun`.
        metric: name under which the loss is reported (default "loss").
        maximize: True where `evaluate` returns a metric to maximise; records hold it negated.
        options: further options of `TrainingRun` (checkpoint_every, report_stride, seed, workload …).

    Raises:
        MetaOptError: outside a trial; use `TrainingRun` there.
        ValueError: the config contradicts the run.
        CheckpointError: the checkpoint is of another run.

    Warns:
        TuneWarning: the checkpoint is damaged; an older one of the trial is taken, or it starts again.

    Examples:
        >>> import torch
        >>> from ray import tune
        >>> from metaopt_hpo_ray import TrialRun, build_strategy, strategy_space, trial_table, tuner_configs
        >>> def train(config):
        ...     _ = torch.manual_seed(0)
        ...     model = torch.nn.Linear(4, 1)
        ...     with TrialRun(
        ...         config, model, build_strategy(config), size=5, tokens=64, batch=2,
        ...         evaluate=lambda: (model(torch.ones(2, 4)) - 3).square().mean(),
        ...     ) as run:
        ...         for _ in run:
        ...             run.step((model(torch.ones(2, 4)) - 3).square().mean())
        ...
        >>> space = {"size": 5, "tokens": 64, "batch": 2}
        >>> space |= strategy_space({"cosine": {"lr": tune.loguniform(1e-3, 1e-1)}})
        >>> results = tune.Tuner(train, **tuner_configs(param_space=space)).fit()
        >>> trial_table(results).frame["state"].tolist()
        ['complete']
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        model: nn.Module,
        strategy: LRStrategy,
        *,
        size: float,
        tokens: float,
        batch: float,
        evaluate: Callable[[], float | Tensor],
        metric: str = METRIC,
        maximize: bool = False,
        **options: Any,
    ) -> None:
        self._train_worker = _compat.in_train_worker()
        if not self._train_worker and not _compat.in_trial():
            raise MetaOptError(
                "TrialRun reports to Ray and runs in a trial only; start it with tune.Tuner(train, …).fit(), "
                "or use metaopt_hpo.TrainingRun outside Ray"
            )
        for name, value in (("size", size), ("tokens", tokens), ("batch", batch), ("lr", strategy.lr)):
            _check_same(config, name, value)
        self._metric = metric
        self._folder = Path(tempfile.mkdtemp(prefix="metaopt-trial-"))
        self._process = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
        self._cost_at_start = 0.0
        self._saved = False
        self._given: Any = None
        self._note = ""
        super().__init__(
            model,
            strategy,
            size=size,
            tokens=tokens,
            batch=batch,
            evaluate=evaluate,
            maximize=maximize,
            checkpoint=self._folder / FILE,
            **options,
        )

    def identity(self) -> dict[str, Any]:
        """What must agree: Ray says whose checkpoint it is, and a population goes on at another lr and seed."""
        whole = super().identity()
        return {k: whole[k] for k in ("strategy", "size", "tokens", "batch", "model")}

    # -- what the loop calls -------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._given = ray.train.get_checkpoint() if self._train_worker else tune.get_checkpoint()
        if self._given is not None:
            (self._folder / FILE).touch()  # there is something to resume from: `_resume` fetches it
        super().__enter__()
        self._cost_at_start = self.recorder.cost
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        super().__exit__(kind, error, trace)
        diverged = self.diverged(error)
        if diverged:
            stand_in = self._sign * (self.stand_in((1.0,)) or 1.0)
            self._send({**self._metrics(self.tokens), self._metric: stand_in}, checkpoint=False)
        shutil.rmtree(self._folder, ignore_errors=True)
        return True if diverged else None

    # -- what the run calls --------------------------------------------------------------------------------

    def report(self, tokens: int, loss: float) -> None:
        """Hand one point, and the checkpoint where a new one was saved, to Ray."""
        self._send(self._metrics(tokens), checkpoint=self._saved)
        self._saved = False

    def save(self) -> None:
        """Write the checkpoint; the next report hands it to Ray."""
        super().save()
        self._saved = True

    # -- Ray's side ----------------------------------------------------------------------------------------

    def _resume(self, path: Path) -> None:
        """Go on from the checkpoint that Ray gave; where it is damaged, from the newest older one that is whole."""
        path.unlink(missing_ok=True)
        assert self._given is not None
        folders = [self._given.path, *older_ones(self._given)]
        lost = ""
        for folder in folders:
            try:
                pyarrow.fs.copy_files(f"{folder}/{FILE}", str(path), source_filesystem=self._given.filesystem)
                state = checkpoints.load(path)
            except (OSError, checkpoints.CheckpointError) as error:
                path.unlink(missing_ok=True)
                lost = lost or f"its checkpoint {folder} cannot be read ({error})"
                continue
            if lost:
                self._say(f"{lost}; it went on from the older {folder}")
            checkpoints.check_identity(folder, state, self.identity())
            self.load_state_dict(state)
            return
        self._say(f"{lost}, and no older one is kept; it started again at its first step")

    def _say(self, what: str) -> None:
        self._note = what
        warnings.warn(f"{what}; what it spent before still counts as its cost", TuneWarning, stacklevel=4)

    def _metrics(self, tokens: float) -> dict[str, Any]:
        record = self.record()
        curve = record.curve
        return {
            self._metric: self.value,
            PROGRESS: round(tokens),
            "step_size": curve.step_size[-1] if curve else math.nan,
            "grad_norm": curve.grad_norm[-1] if curve else math.nan,
            COST: record.cost,
            WORK: self.recorder.cost - self._cost_at_start,
            PROCESS: self._process,
            **({NOTE: self._note} if self._note else {}),
            **result_of(record),
        }

    def _send(self, metrics: dict[str, Any], *, checkpoint: bool) -> None:
        folder = str(self._folder) if checkpoint and rank() == 0 else None
        if self._train_worker:
            made = None if folder is None else ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=made)
        else:
            tune.report(
                metrics, checkpoint=None if folder is None else tune.Checkpoint.from_directory(folder)
            )


def _check_same(config: Mapping[str, Any], name: str, value: float) -> None:
    held = at(config, name)
    if isinstance(held, int | float) and not isinstance(held, bool) and float(held) != float(value):
        raise ValueError(
            f"the trial's config has {name}={held!r} and this run has {name}={value!r}; a trial is one run, "
            f"of one {name}"
        )
