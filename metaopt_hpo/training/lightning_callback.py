"""A Lightning Trainer's run as a `ReportedRun`, whichever framework it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.training.framework_run import Point, ReportedRun

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(
        "a Lightning callback needs lightning, which is not installed; run: pip install lightning"
    ) from error

Run = TypeVar("Run", bound=ReportedRun)


class ReportedLightning(Callback, Generic[Run]):
    """Reports each validation to a run, at the grid point passed last, and stops when the run says so.

    Args:
        begin: makes the run of size, tokens, batch, lr and strategy, when fitting begins.
        size: trainable non-embedding parameters.
        batch: tokens (examples, where there are none) of an optimizer step, over all devices.
        lr: the knob.
        tokens: planned training tokens; default `max_steps` of the Trainer times `batch`.
        monitor: which logged validation metric is reported.
        strategy: name of what sets lr.
    """

    def __init__(
        self,
        begin: Callable[..., Run],
        *,
        size: float,
        batch: float,
        lr: float,
        tokens: float | None = None,
        monitor: str = "val_loss",
        strategy: str = "",
    ) -> None:
        self._begin = begin
        self._size = size
        self._batch = batch
        self._lr = lr
        self._tokens = tokens
        self._monitor = monitor
        self._strategy = strategy
        self._earlier: list[Point] = []
        self._run: Run | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe the run."""
        tokens = self._tokens
        if tokens is None:
            if trainer.max_steps is None or trainer.max_steps < 1:
                raise ValueError("tokens is not known: give tokens=… or Trainer(max_steps=…)")
            tokens = trainer.max_steps * self._batch
        self._run = self._begin(
            size=self._size,
            tokens=tokens,
            batch=self._batch,
            lr=self._lr,
            strategy=self._strategy,
        )
        self._run.begin(self._earlier)

    def state_dict(self) -> dict[str, Any]:
        """What was reported so far, for Lightning's checkpoint."""
        return {"points": [] if self._run is None else self._run.points()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it from there; Lightning calls it before `on_fit_start`."""
        self._earlier = [tuple(point) for point in state_dict["points"]]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give up what the framework holds for the run."""
        if self._run is not None:
            self._run.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give up what the framework holds for the run."""
        if self._run is not None:
            self._run.close()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and stop where the framework says so."""
        if trainer.sanity_checking or self._run is None:
            return
        metrics: Any = trainer.callback_metrics
        if self._monitor not in metrics:
            raise MetaOptError(
                f"no metric {self._monitor!r} was logged; there are {', '.join(sorted(metrics))}; log it in "
                "validation_step, or name another with monitor=…"
            )
        reason = self._run.report(trainer.global_step * self._batch, float(metrics[self._monitor]))
        if reason is not None:
            trainer.should_stop = True

    @property
    def run(self) -> Run:
        """The run, once Lightning has begun to train."""
        if self._run is None:
            raise MetaOptError("Lightning has not begun to train; call trainer.fit first")
        return self._run
