"""What a run says while it goes on: a line of progress, and scalars for a logger of any kind.

Both are listeners, called as `listener(lr_run, loss)` after a step: by `TrainingRun(…, listeners=[…])`, by
`run.as_optimizer().listeners`, or by a loop of your own.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import torch
from torch import Tensor

from metaopt_hpo.strategies.base import LRRun
from metaopt_hpo.strategies.shared_meta import SharedAdam

BLOCKS = 4096
"""With more step sizes than this z is not written: its running mean is copied at every step."""

Listener = Callable[[LRRun, Tensor | None], None]


def scalars(run: LRRun, loss: Tensor | None = None) -> dict[str, float]:
    """What is worth plotting of a run now; reading it waits for the device.

    Returns:
        `step_size` (geometric mean over blocks), `grad_norm` (before clipping), `loss` where given; of a run that
        finds its lr also `meta_gradient` (the meta rule's running mean of z, averaged over blocks) and `guard_returns`
        (how often the guard brought the run back so far).
    """
    sizes = run.step_sizes().double()
    found = {"step_size": math.exp(float(sizes.log().mean()))}
    if run.grad_norm is not None:
        found["grad_norm"] = float(run.grad_norm)
    if loss is not None:
        found["loss"] = _number(loss)
    z = run.optimizer.param_groups[0].get("meta_m")
    if isinstance(z, Tensor):
        found["meta_gradient"] = float(z.double().mean())
    guard = getattr(run, "guard", None)
    if guard is not None:
        found["guard_returns"] = float(guard.total)
    return found


def _number(loss: Tensor | float) -> float:
    return float(loss.detach() if isinstance(loss, Tensor) else loss)


class Scalars:
    """Writes a run's scalars to a logger: TensorBoard, Weights & Biases, MLflow, Lightning's, or a function.

        writer = torch.utils.tensorboard.SummaryWriter()        # or wandb.init(), mlflow, a Lightning logger
        with TrainingRun(…, listeners=[Scalars(writer)]) as run:

    Beside `scalars` it writes `z`, the meta-gradient of the step itself summed over blocks (where the meta rule is
    Adam's), and `guard_event`, 1 where the guard has brought the run back since the last write.

    Args:
        logger: anything with `add_scalar(name, value, step)`, `log_metrics(values, step=step)` or
            `log(values, step=step)`, or a function of (values, step).
        every: steps between two writes; a return by the guard is written at once.
        prefix: put before each name.

    Raises:
        ValueError: a logger with none of these.
    """

    def __init__(self, logger: Any, *, every: int = 10, prefix: str = "metaopt/") -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every!r}")
        self._write = _writer(logger)
        self._every = every
        self._prefix = prefix
        self._returns = 0
        self._mean: Tensor | None = None
        """The meta rule's running mean of z after the last step."""

    def __call__(self, run: LRRun, loss: Tensor | None = None) -> None:
        """Write where it is time to."""
        guard = getattr(run, "guard", None)
        returns = getattr(guard, "total", 0)
        if returns == self._returns and run.steps_taken % self._every and run.steps_taken != run.horizon:
            self._keep_mean(run)
            return
        values = scalars(run, loss)
        z = self._z(run)
        if z is not None:
            values["z"] = z
        if guard is not None:
            values["guard_event"] = float(returns != self._returns)
        self._returns = returns
        self._write({self._prefix + k: v for k, v in values.items()}, run.steps_taken)
        self._keep_mean(run)

    def _keep_mean(self, run: LRRun) -> None:
        mean = run.optimizer.param_groups[0].get("meta_m")
        self._mean = mean.clone() if isinstance(mean, Tensor) and mean.numel() <= BLOCKS else None

    def _z(self, run: LRRun) -> float | None:
        """z of the last step, summed over blocks: what the running mean m ← ρm + (1−ρ)z has taken in."""
        optimizer = run.optimizer
        mean = optimizer.param_groups[0].get("meta_m")
        rule = getattr(optimizer, "meta", None)
        betas = getattr(rule, "betas", None)
        if betas is None or not isinstance(mean, Tensor) or mean.numel() > BLOCKS:
            return None
        before = torch.zeros_like(mean) if run.steps_taken == 1 else self._mean
        if before is None or before.shape != mean.shape:
            return None
        z = (mean.double() - betas[0] * before.double()) / (1 - betas[0])
        # blocks that move together have one mean, of the sum
        return float(z.mean() if isinstance(rule, SharedAdam) else z.sum())


def _writer(logger: Any) -> Callable[[Mapping[str, float], int], None]:
    if callable(getattr(logger, "add_scalar", None)):

        def each(values: Mapping[str, float], step: int) -> None:
            for name, value in values.items():
                logger.add_scalar(name, value, step)

        return each
    for method in ("log_metrics", "log"):
        if callable(getattr(logger, method, None)):
            return lambda values, step: getattr(logger, method)(dict(values), step=step)
    if callable(logger):
        return lambda values, step: logger(values, step)
    raise ValueError(
        f"logger of type {type(logger).__name__} has none of add_scalar, log_metrics and log, and is no function"
    )


class Progress:
    """A line that says where a run is: step, loss, step size, time left.

    Args:
        seconds: between two updates.
        stream: where to; standard error by default, where a terminal's line is overwritten.
    """

    def __init__(self, *, seconds: float = 1.0, stream: TextIO | None = None) -> None:
        self._seconds = seconds
        self._stream = stream
        self._begun = 0.0
        self._first = -1
        self._last = -math.inf

    def __call__(self, run: LRRun, loss: Tensor | None = None) -> None:
        """Write the line where it is time to, and at the end."""
        now, done = time.monotonic(), run.steps_taken >= run.horizon
        if self._first < 0:
            self._begun, self._first = now, run.steps_taken
        if now - self._last < self._seconds and not done:
            return
        self._last = now
        stream = sys.stderr if self._stream is None else self._stream
        over = "\r" if stream.isatty() else ""
        stream.write(f"{over}{self.line(run, loss, now)}" + ("\n" if done or not over else ""))
        stream.flush()

    def line(self, run: LRRun, loss: Tensor | None, now: float) -> str:
        """The line itself."""
        parts = [f"step {run.steps_taken:,} of {run.horizon:,}"]
        if loss is not None:
            parts.append(f"loss {_number(loss):.4f}")
        parts.append(f"step size {scalars(run)['step_size']:.2e}")
        taken = run.steps_taken - self._first
        if taken > 0:
            left = max(0, run.horizon - run.steps_taken) * (now - self._begun) / taken
            parts.append(f"{int(left // 3600)}:{int(left // 60 % 60):02d}:{int(left % 60):02d} left")
        return ", ".join(parts)
