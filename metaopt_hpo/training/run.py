"""One training run: it steps, evaluates on the token grid, records, checkpoints, and notices divergence.

`TrainingRun` knows no framework. An integration's `TrialRun` derives from it and overrides two methods:
`report`, which hands a point to the framework, and `should_stop`, which asks it for a decision.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from metaopt_hpo.strategies.base import LRStrategy
from metaopt_hpo.training import checkpoint as checkpoints
from metaopt_hpo.training.ending import (
    FiniteLosses,
    RunDiverged,
    RunStopped,
    no_progress,
    warn_no_progress,
    why_diverged,
)
from metaopt_hpo.training.gradients import NOISE_EVERY, backward
from metaopt_hpo.training.live import Listener
from metaopt_hpo.training.planned import PlannedRun
from metaopt_hpo.training.recorder import Recorder, peak_memory
from metaopt_hpo.trials.record import TrialRecord, TrialState


class TrainingRun:
    """A training run of `model` under `strategy`, from the first step to its record.

        with TrainingRun(model, strategy, size=n, tokens=d, batch=b, evaluate=held_out_loss) as run:
            for step in run:                      # goes on where a checkpoint left off
                run.step(loss(model, data(step)))
        record = run.record()

    Training in float16 takes `scaler=torch.amp.GradScaler()`: losses are given unscaled, and a step that overflows
    changes no weight. Strategies that differentiate the gradient (`trace="2x2"` …) need the loss made inside
    `with run.forward():`.

    Args:
        model: what is trained; its state is checkpointed.
        strategy: how lr is set; see `metaopt_hpo.strategies`.
        size: trainable non-embedding parameters, for the record.
        tokens: tokens to train on, D. The run takes ceil(D / B) optimizer steps.
        batch: tokens per optimizer step, B.
        evaluate: returns the held-out loss (nats per token) of the model as it is; called with the model
            and the optimizer in evaluation mode and gradients off.
        flops_per_token: training FLOPs per token; default 6·size (forward and backward of every weight).
        checkpoint: file to save to; None for no checkpoints. An existing one of this very run is resumed from:
            same strategy and options, size, tokens, batch, seed, workload and shapes of the model.
        checkpoint_every: save at every n-th report (default 1) and at the end.
        reports: at most this many evaluations before the last step, few early and many late, at points that runs of
            all lengths share (default 40; see `report_grid`). The end is always evaluated.
        report_stride: instead, report at every n-th point of the shared token grid t_k = ceil(2^(k/8)).
        unique_tokens: different tokens in the training data, for the record.
        epochs: instead, how often the run sees its data.
        listeners: called as `listener(lr_run, loss)` after every step, such as `Progress()` and `Scalars(writer)` of
            `metaopt_hpo.training.live`.
        scaler: loss scale for float16, or None; its state is checkpointed.
        seed, workload, params: written to the record.

    Raises:
        CheckpointError: from the start of the block, where the file is damaged or another run's.
        RunDiverged: from `step`, when the loss is non-finite or more than twice that of the untrained model.
        RunStopped: from `step`, when `should_stop` gave a reason.
        ValueError: a field out of range.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(4, 1)
        >>> from metaopt_hpo import TrainingRun, model_size
        >>> from metaopt_hpo.strategies import make
        >>> def held_out():
        ...     return model(torch.ones(2, 4)).square().mean()
        ...
        >>> run = TrainingRun(
        ...     model, make("cosine", lr=1e-2), size=model_size(model), tokens=16, batch=2, evaluate=held_out
        ... )
        >>> for _ in run:
        ...     run.step(model(torch.randn(2, 4)).square().mean())
        ...
        >>> run.record().state
        'complete'
    """

    def __init__(
        self,
        model: nn.Module,
        strategy: LRStrategy,
        *,
        size: float,
        tokens: float,
        batch: float,
        evaluate: Callable[[], float | Tensor],
        flops_per_token: float | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 1,
        reports: int = 40,
        report_stride: int | None = None,
        unique_tokens: float = math.nan,
        epochs: float | None = None,
        listeners: Sequence[Listener] = (),
        scaler: torch.amp.GradScaler | None = None,
        seed: int = 0,
        workload: str = "",
        params: Mapping[str, float | int | str | bool] | None = None,
    ) -> None:
        if checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be at least 1, got {checkpoint_every!r}")
        self.planned = PlannedRun(
            size=size,
            tokens=tokens,
            batch=batch,
            flops_per_token=math.nan if flops_per_token is None else float(flops_per_token),
            reports=reports,
            report_stride=report_stride,
            unique_tokens=unique_tokens,
            epochs=epochs,
            seed=seed,
            workload=workload,
            params=params or {},
        )
        """What is fixed before the first step."""
        self._checkpoint = None if checkpoint is None else Path(checkpoint)
        self._checkpoint_every = checkpoint_every
        self.model = model
        self.strategy = strategy
        self.size = self.planned.size
        self.batch = self.planned.batch
        self.target_tokens = self.planned.tokens
        self.horizon = self.planned.horizon
        self.lr_run = strategy.build(model, self.horizon)
        self.recorder = Recorder()
        self.loss = math.nan
        """Held-out loss at the last report."""
        self.initial_loss = math.nan
        self.state: TrialState = "running"
        self.reason = ""
        self._evaluate = evaluate
        self._scaler = scaler
        self._reports = 0
        self._points = self.planned.report_points()
        self._listeners = list(listeners)
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._finite = FiniteLosses(self._device)

    # -- the loop's side -----------------------------------------------------------------------------------

    @property
    def steps_taken(self) -> int:
        """Optimizer steps done, those before a resume included."""
        return self.lr_run.steps_taken

    @property
    def tokens(self) -> float:
        """Training tokens seen."""
        return self.steps_taken * self.batch

    @property
    def wants_halves(self) -> bool:
        """True when the coming step should be given as two half-batch losses, `run.step(first, second)`."""
        return self.steps_taken % NOISE_EVERY == 0 and not self.lr_run.needs_graph

    def forward(self) -> AbstractContextManager[Any]:
        """What the forward pass of a step runs in; it matters only to strategies that differentiate the gradient."""
        return self.lr_run.forward()

    def __enter__(self) -> Self:
        if self._checkpoint is not None and self._checkpoint.exists():
            self._resume(self._checkpoint)
        if self.state == "stopped" and self.steps_taken < self.horizon:
            self.state, self.reason = "running", ""  # it goes on
        if math.isnan(self.initial_loss):
            self.initial_loss = self._held_out()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if self.state != "running":
            return None
        if kind is None:
            self._end_early()
            return None
        if not issubclass(kind, Exception):
            return None  # an interrupt: the run can be resumed
        self.state, self.reason = "failed", f"{kind.__name__}: {error}"
        return None

    def _end_early(self) -> None:
        """Record that the loop ended by itself; a checkpoint lets it go on from here."""
        if self._checkpoint is not None:
            self.save()
        self.state = "stopped"
        self.reason = (
            f"the loop ended by itself after {self.steps_taken} of {self.horizon} planned steps "
            f"({self.tokens:g} of {self.target_tokens:g} tokens)"
        )
        if self.steps_taken and self.recorder.last_tokens != round(self.tokens):
            self._measure(round(self.tokens))
            self.report(round(self.tokens), self.loss)

    def __iter__(self) -> Iterator[int]:
        """Numbers of the steps that remain, from the one after the checkpoint."""
        while self.steps_taken < self.horizon:
            yield self.steps_taken

    def step(self, *losses: Tensor) -> None:
        """Backward and one optimizer step; at a grid point evaluate, report and save.

        Args:
            losses: mean losses of equal parts of the batch, each from a forward pass of its own; usually
                one. Gradients are averaged; with two or more parts the gradient noise is measured too, at no
                further cost.

        Raises:
            RunDiverged, RunStopped: see the class.
        """
        if not losses:
            raise ValueError("step needs at least one loss: run.step(loss)")
        if self.lr_run.needs_graph:
            loss = torch.stack(losses).mean()
        else:
            loss = backward(
                losses, self.model, scaler=self._scaler, noise=self.recorder.noise, batch=self.batch
            )
        self.lr_run.step(loss, scaler=self._scaler)
        loss = loss.detach()
        self.recorder.cost += self.planned.flops_per_token * self.batch
        self._watch(loss)
        for listener in self._listeners:
            listener(self.lr_run, loss)
        point = self._points.passed(self.tokens)
        done = self.steps_taken >= self.horizon
        if done:
            point = round(self.tokens)
        if point is not None:
            self._report(point, done)

    def _watch(self, loss: Tensor) -> None:
        reason = self._finite.see(self.steps_taken, loss)
        if reason is not None:
            self._diverge(reason)

    def _measure(self, point: int) -> None:
        self.loss = self._held_out()
        sizes = self.lr_run.step_sizes().double()
        norm = self.lr_run.grad_norm
        self.recorder.report(
            point,
            self.loss,
            step_size=float(torch.exp(torch.log(sizes).mean())),
            grad_norm=math.nan if norm is None else float(norm),
        )
        self._reports += 1

    def _report(self, point: int, done: bool) -> None:
        self._measure(point)
        lost = why_diverged(self.loss, self.initial_loss, point)
        if lost is not None:
            self._diverge(lost)
        if done:
            self.state = "complete"
            self.reason = no_progress(self.loss, self.initial_loss, self.horizon) or ""
            if self.reason:
                warn_no_progress(self.strategy.name, self.strategy.base, self.reason, stacklevel=4)
        if self._checkpoint is not None and (done or self._reports % self._checkpoint_every == 0):
            self.save()
        self.report(point, self.loss)
        reason = None if done else self.should_stop()
        if reason is not None:
            self.state, self.reason = "pruned", reason
            raise RunStopped(reason)

    def _held_out(self) -> float:
        self.model.eval()
        self.lr_run.eval()
        with torch.no_grad():
            loss = float(self._evaluate())
        self.model.train()
        self.lr_run.train()
        return loss

    def _diverge(self, reason: str) -> None:
        self.state, self.reason = "diverged", reason
        raise RunDiverged(reason)

    def report_now(self) -> None:
        """Evaluate and report at the tokens seen so far, on the token grid or off it; once for each.

        For a loop that halts between two points of the grid, where somebody compares runs.

        Raises:
            RunDiverged, RunStopped: as `step`.
        """
        if not (self._reports and self.recorder.last_tokens == round(self.tokens)):
            self._report(round(self.tokens), self.steps_taken >= self.horizon)

    # -- the framework's side ------------------------------------------------------------------------------

    def report(self, tokens: int, loss: float) -> None:
        """Hand one point of the curve to the framework; here there is none."""

    def should_stop(self) -> str | None:
        """A reason to stop after the point just reported, or None; here nobody asks to stop."""
        return None

    # -- what it leaves ------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint now.

        Raises:
            CheckpointError: it cannot be written; the one before is whole.
        """
        if self._checkpoint is None:
            raise ValueError("this run has no checkpoint file; pass checkpoint=PATH")
        checkpoints.save(self._checkpoint, self.state_dict())

    def identity(self) -> dict[str, Any]:
        """Which run this is: a checkpoint holds it, and no run that differs in any of it goes on from there.

        Integrations add who the trial is; values are plain, so that they compare across processes.
        """
        return {
            "workload": self.planned.workload,
            "strategy": self.strategy.name,
            "options": {k: checkpoints.plain(v) for k, v in self.strategy.options().items()},
            "size": self.size,
            "tokens": self.target_tokens,
            "batch": self.batch,
            "seed": self.planned.seed,
            "model": checkpoints.shapes(self.model),
        }

    def _resume(self, path: Path) -> None:
        checkpoints.resume(path, self.identity(), self.load_state_dict)

    def state_dict(self) -> dict[str, Any]:
        """Identity, model, optimizer, strategy, recorder, counters and random generators."""
        return {
            checkpoints.IDENTITY: self.identity(),
            "model": self.model.state_dict(),
            "lr_run": self.lr_run.state_dict(),
            "recorder": self.recorder.state_dict(),
            "counters": {
                "initial_loss": self.initial_loss,
                "loss": self.loss,
                "reports": self._reports,
                "state": self.state,
                "batch": self.batch,
                "bad_steps": self._finite.state(),
            },
            "random": checkpoints.random_state(),
            "scaler": None if self._scaler is None else self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`, of this run or of another whose weights are taken up at another lr.

        The data position is `steps_taken`.

        Raises:
            CheckpointError: the state is of a run with another batch; data positions would not agree.
        """
        counters = state["counters"]
        if counters["batch"] != self.batch:
            raise checkpoints.CheckpointError(
                f"the checkpoint was made at batch {counters['batch']:g} and this run has batch {self.batch:g}; "
                "resume with the same batch or remove the checkpoint"
            )
        self.model.load_state_dict(state["model"])
        self.lr_run.load_state_dict(state["lr_run"])
        self.recorder.load_state_dict(state["recorder"])
        self.initial_loss, self.loss = float(counters["initial_loss"]), float(counters["loss"])
        self._reports, self.state = int(counters["reports"]), counters["state"]
        self._finite.load_state(counters["bad_steps"])
        self._points.go_on(self.tokens)
        checkpoints.set_random_state(state["random"])
        if self._scaler is not None and state.get("scaler"):
            self._scaler.load_state_dict(state["scaler"])

    def record(self, **fields: Any) -> TrialRecord:
        """The trial record so far.

        Args:
            fields: override or add fields of `TrialRecord` (trial, study, method, engine …).
        """
        found_lr, spread = self.recorder.plateau() if self.strategy.tunes_lr else (math.nan, math.nan)
        values: dict[str, Any] = {
            **self.planned.fields(),
            **self.recorder.fields(),
            "tokens": self.tokens,
            "lr": self.strategy.lr,
            "loss": self.loss,
            "strategy": self.strategy.name,
            "tuning": "self" if self.strategy.tunes_lr else "external",
            "state": self.state,
            "reason": self.reason,
            "initial_loss": self.initial_loss,
            "memory": peak_memory(self._device),
            "found_lr": found_lr,
            "found_lr_spread": spread,
        }
        return TrialRecord(**{**values, **fields})
