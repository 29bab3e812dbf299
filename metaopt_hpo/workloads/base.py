"""What a workload offers: a model, its data by step number, a held-out loss; and the loop that trains it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.strategies.base import LRStrategy
from metaopt_hpo.training.ending import RunStopped
from metaopt_hpo.training.run import TrainingRun


class WorkloadError(MetaOptError):
    """A workload's data are missing or its settings do not fit together."""


@runtime_checkable
class Workload(Protocol):
    """One training job at one size. Everything is a pure function of its settings, the seed and the step."""

    @property
    def name(self) -> str:
        """What the workload is called in tables."""
        ...

    @property
    def size(self) -> int:
        """Trainable non-embedding parameters."""
        ...

    @property
    def batch(self) -> int:
        """Tokens per optimizer step."""
        ...

    @property
    def flops_per_token(self) -> float:
        """Measured training FLOPs (forward and backward) per token."""
        ...

    def model(self, seed: int) -> nn.Module:
        """A freshly initialised model; the same for the same seed."""
        ...

    def losses(self, model: nn.Module, step: int, seed: int, parts: int) -> tuple[Tensor, ...]:
        """Mean training losses of `parts` equal parts of the batch of step `step`."""
        ...

    def held_out_loss(self, model: nn.Module) -> float:
        """Loss on the fixed held-out part, nats per token; gradients are off and the model in eval mode."""
        ...

    def with_batch(self, batch: int) -> Self:
        """The same job at another batch size."""
        ...


@runtime_checkable
class Scored(Protocol):
    """A workload that can also say how good a model is in terms other than its loss."""

    def scores(self, model: nn.Module) -> dict[str, float]:
        """Held-out scores by name (accuracy, r2 …); gradients are off and the model in eval mode."""
        ...


def scores(workload: Workload, run: TrainingRun) -> dict[str, float]:
    """Held-out scores of a run's model as it is, evaluated as its loss is; empty for a workload that has none.

    They are no part of the record; `run.record(params={**params, **scores(workload, run)})` adds them.
    """
    if not isinstance(workload, Scored):
        return {}
    run.model.eval()
    run.lr_run.eval()
    with torch.no_grad():
        found = workload.scores(run.model)
    run.model.train()
    run.lr_run.train()
    return found


def train(
    workload: Workload,
    strategy: LRStrategy,
    *,
    tokens: float,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    run_class: Callable[..., TrainingRun] = TrainingRun,
    **options: Any,
) -> TrainingRun:
    """Train one workload to the end and return the finished run; its `record()` is the trial.

    A run that diverges or is stopped is returned too: its `state` and `reason` say so.

    Args:
        tokens: training tokens, D.
        seed: of initialisation and data order; equal seeds give equal starts and equal batches whatever
            the strategy, so that strategies are compared on common random numbers.
        device: where to train; the model is initialised on the CPU, so that a seed means the same everywhere.
        dtype: of the weights; None leaves them as the workload makes them (float32).
        run_class: what makes the run; integrations pass their own.
        options: passed on to it (checkpoint, report_stride, params …).
    """
    run = begin(
        workload,
        strategy,
        tokens=tokens,
        seed=seed,
        device=device,
        dtype=dtype,
        run_class=run_class,
        **options,
    )
    with contextlib.suppress(RunStopped):
        for _ in steps(workload, run, seed):
            pass
    return run


def begin(
    workload: Workload,
    strategy: LRStrategy,
    *,
    tokens: float,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    run_class: Callable[..., TrainingRun] = TrainingRun,
    **options: Any,
) -> TrainingRun:
    """The run of a workload before its first step; arguments as `train`."""
    model = workload.model(seed).to(device=device, dtype=dtype)
    return run_class(
        model,
        strategy,
        size=workload.size,
        tokens=tokens,
        batch=workload.batch,
        evaluate=lambda: workload.held_out_loss(model),
        flops_per_token=workload.flops_per_token,
        seed=seed,
        workload=workload.name,
        **options,
    )


def steps(workload: Workload, run: TrainingRun, seed: int) -> Iterator[None]:
    """Take the steps of a run that remain, yielding after each, so that the caller may halt it anywhere.

    Raises:
        RunDiverged, RunStopped: as `TrainingRun.step`.
    """
    with run:
        for step in run:
            with run.forward():
                losses = workload.losses(run.model, step, seed, 2 if run.wants_halves else 1)
            run.step(*losses)
            yield


def measured_flops(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> float:
    """FLOPs of one forward and backward pass, counted by torch's `FlopCounterMode` (matrix products only)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        loss(model).backward()
    model.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random generator of one step's batch: independent of every other step, so that runs resume anywhere."""
    generator = torch.Generator()
    # 2^31 - 1 steps a seed before two seeds meet
    generator.manual_seed((seed + 1) * 2_147_483_647 + step)
    return generator
