"""What every framework's run adds to a training run: one rank speaks, one sign, one stand-in for a lost loss.

Two forms, for the two ways of training. `FrameworkRun` is a `TrainingRun`: the loop is the user's, the steps are ours.
`ReportedRun` is for loops that somebody else owns (Trainer, Lightning): it is told what was evaluated. An integration
says how a point is handed over, how a decision is asked for, and where a record is kept; everything else is here.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.strategies.base import LRStrategy
from metaopt_hpo.training.distributed import from_rank_0, is_distributed, min_over_ranks, rank
from metaopt_hpo.training.ending import LEAST_GAIN, NoProgress, RunDiverged
from metaopt_hpo.training.run import TrainingRun
from metaopt_hpo.trials.diverged import exploded, stand_in_loss
from metaopt_hpo.trials.record import CURVE_FIELDS, REACHED, Curve, TrialRecord, TrialState, report_grid

EARLY = 0.25
"""A first evaluation after at most this fraction of a run still shows what there was to learn."""

Point = tuple[float, float, float, float, float]
"""Tokens seen, metric, step size, gradient norm and seconds of one report, as a framework's checkpoint keeps it."""


class FrameworkRun(TrainingRun):
    """A `TrainingRun` that belongs to a framework's trial.

    A subclass overrides `report`, and `ask` where the framework decides about running trials. With
    `torch.distributed` initialised every rank builds the run; rank 0 reports, asks and saves, and its held-out loss
    and the answer count on all ranks.

    Args:
        model, strategy, size, tokens, batch, evaluate: as `TrainingRun`.
        maximize: True where `evaluate` returns a metric to maximise; losses and records hold it negated.
        options: further options of `TrainingRun`.
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
        maximize: bool = False,
        **options: Any,
    ) -> None:
        self._sign = from_rank_0(-1.0 if maximize else 1.0)
        super().__init__(model, strategy, size=size, tokens=tokens, batch=batch, evaluate=evaluate, **options)

    @property
    def value(self) -> float:
        """The last held-out loss, or the metric where it is maximised."""
        return self._sign * self.loss

    @property
    def direction(self) -> str:
        """Direction of the metric, for the record."""
        return "maximize" if self._sign < 0 else "minimize"

    def ask(self) -> str | None:
        """The framework's reason to stop after the point just reported, or None; asked on rank 0 only."""
        return None

    def should_stop(self) -> str | None:
        """`ask` on rank 0; all ranks get the answer, and end together."""
        return from_rank_0(self.ask() if rank() == 0 else None)

    def save(self) -> None:
        """Write the checkpoint; rank 0 writes, the others wait for it."""
        if rank() == 0:
            super().save()
        if is_distributed():
            torch.distributed.barrier()

    def stand_in(self, others: Iterable[float] = ()) -> float | None:
        """`stand_in_loss` of this run."""
        curve = self.recorder.curve()
        return stand_in_loss(self.initial_loss, curve.loss if curve is not None else (), others)

    def diverged(self, error: BaseException | None) -> bool:
        """Whether the block ended because the run diverged."""
        return isinstance(error, RunDiverged)

    def _held_out(self) -> float:
        # all ranks must judge the same number, or one would stop and the others wait for it
        return from_rank_0(self._sign * super()._held_out())

    def _watch(self, loss: Tensor) -> None:
        super()._watch(min_over_ranks(loss))


class ReportedRun:
    """A run whose loop a framework owns: points on the token grid, a record, an end.

    A subclass overrides `tell` (hand one point over), `ask` (a reason to stop) and `keep` (the record at the end).
    With `torch.distributed` initialised every rank makes one; rank 0's metric counts, it reports and decides, and all
    ranks end alike.

    Args:
        size: trainable non-embedding parameters.
        tokens: planned training tokens.
        batch: tokens per optimizer step.
        lr: the knob.
        maximize: True where the metric is maximised.
        fields: further fields of the `TrialRecord` (strategy, tuning, seed, workload, params, engine …).

    Raises:
        ValueError: a quantity that is not positive.
    """

    def __init__(
        self, *, size: float, tokens: float, batch: float, lr: float, maximize: bool = False, **fields: Any
    ) -> None:
        for name, value in (("size", size), ("tokens", tokens), ("batch", batch), ("lr", lr)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
        self.loss = math.nan
        self.reason = ""
        self.state: TrialState = "running"
        self.tokens = 0.0
        self._planned = float(tokens)
        self._sign = from_rank_0(-1.0 if maximize else 1.0)
        self._grid = report_grid(max(tokens, 1.0), start=min(batch, tokens / 2))
        self._rows: list[tuple[float, ...]] = []
        self._begun = time.perf_counter()
        self._record = TrialRecord(
            size=float(size),
            tokens=0.0,
            batch=float(batch),
            lr=float(lr),
            loss=math.nan,
            target_tokens=float(tokens),
            direction="maximize" if self._sign < 0 else "minimize",
            **fields,
        )

    # -- what an integration overrides -----------------------------------------------------------------------

    def tell(self, point: int, loss: float) -> None:
        """Hand one point, always finite, to the framework."""

    def ask(self, point: int) -> str | None:
        """The framework's reason to stop after this point, or None; asked on rank 0 only."""
        return None

    def keep(self, record: TrialRecord) -> None:
        """Keep the record of the run that has ended."""

    def close(self) -> None:
        """Give up what the framework holds for a run under way; called however it ends, and maybe twice."""

    # -- what a callback calls -------------------------------------------------------------------------------

    def begin(self, earlier: Iterable[Point] = ()) -> bool:
        """Take up what was reported before; a retry is a new trial, and it is reported again.

        Returns:
            Whether there was anything: the run goes on from a checkpoint.
        """
        for tokens, metric, step_size, grad_norm, seconds in earlier:
            self._take(tokens, metric, step_size, grad_norm, seconds)
        if not self._rows:
            return False
        spent = self._rows[-1][-1]
        self._begun = time.perf_counter() - (spent if math.isfinite(spent) else 0.0)
        return True

    def points(self) -> list[Point]:
        """What was reported so far, for `begin` of a run that goes on from a checkpoint."""
        return [(r[0], self._sign * r[1], r[2], r[3], r[6]) for r in self._rows]

    def due(self, tokens: float) -> int | None:
        """The grid point to report at when `tokens` have been seen, None when there is no new one."""
        if tokens >= self._planned:
            point: int | None = round(self._planned)
        else:
            point = max((t for t in self._grid if t <= tokens), default=None)
        last = self._rows[-1][0] if self._rows else 0
        return point if point is not None and point > last else None

    def report(
        self, tokens: float, metric: float, *, step_size: float = math.nan, grad_norm: float = math.nan
    ) -> str | None:
        """Report the held-out loss (or the metric that is maximised) at `tokens` seen.

        Returns:
            A reason to stop now: the framework's, or that the run diverged. None to go on.
        """
        seconds = time.perf_counter() - self._begun
        point = self._take(tokens, metric, step_size, grad_norm, seconds)
        if point is None or self.state != "running":
            return self.reason or None
        asked = rank() == 0 and tokens < self._planned
        reason = from_rank_0(self.ask(point) if asked else None)
        return None if reason is None else self.end("pruned", reason)

    def end(self, state: TrialState, reason: str) -> str:
        """The run has ended; returns the reason."""
        self.state, self.reason = state, reason
        return reason

    def finish(self) -> float:
        """Close the run when training has ended, keep its record, and return the last metric.

        A run that ended by itself before its planned tokens (an early-stopping callback) is `stopped`, with the
        tokens it reached.

        Raises:
            MetaOptError: nothing was reported.
        """
        if not self._rows and self.state == "running":
            raise MetaOptError(
                f"{self._called()} ended without an evaluation; evaluate at least once in the run"
            )
        if self.state == "running":
            if self.tokens >= min(REACHED * self._planned, self._planned - self._record.batch):
                self.end("complete", self._no_progress())
            else:
                self.end("stopped", f"it ended by itself after {self.tokens:g} of {self._planned:g} tokens")
        self.keep(self._finished())
        return self._sign * self.loss

    def _called(self) -> str:
        return "the run"

    def _no_progress(self) -> str:
        """What is said of a run that is no better at any later evaluation than at an early first one; else nothing."""
        point, first = self._rows[0][:2]
        best = min((row[1] for row in self._rows[1:]), default=-math.inf)
        if point > EARLY * self._planned or not first - best <= LEAST_GAIN * abs(first):
            return ""
        reason = (
            f"made no progress: held-out loss {first:.4g} after {point:g} tokens and {self.loss:.4g} after "
            f"{self.tokens:g}"
        )
        if rank() == 0:
            warnings.warn(
                f"{self._called()} under strategy {self._record.strategy!r} {reason}; try another base or lr, and "
                "see whether the model can learn at all with plain AdamW",
                NoProgress,
                stacklevel=4,
            )
        return reason

    def _take(
        self, tokens: float, metric: float, step_size: float, grad_norm: float, seconds: float
    ) -> int | None:
        """Keep a point and tell it; a loss that has exploded ends the run."""
        point = self.due(tokens)
        self.tokens = max(self.tokens, min(float(tokens), self._planned))
        if point is None:
            return None
        # all ranks must judge the same number, or one would stop and the others wait for it
        self.loss = from_rank_0(self._sign * float(metric))
        cost = 6.0 * self._record.size * self.tokens
        self._rows.append((point, self.loss, step_size, grad_norm, math.nan, cost, seconds))
        first = self._rows[0][1]
        if exploded(self.loss, first):
            stand_in = stand_in_loss(first, (r[1] for r in self._rows))
            if stand_in is not None:
                self.tell(point, stand_in)
            self.end("diverged", f"held-out loss is {self.loss:.4g} after {point} tokens")
        else:
            self.tell(point, self.loss)
        return point

    def _finished(self, **fields: Any) -> TrialRecord:
        curve = None
        if self._rows:
            columns = zip(CURVE_FIELDS, zip(*self._rows, strict=True), strict=True)
            curve = Curve(**{name: tuple(map(float, column)) for name, column in columns})
        values: Mapping[str, Any] = {
            "tokens": self.tokens,
            "loss": self.loss,
            "state": self.state,
            "reason": self.reason,
            "cost": 6.0 * self._record.size * self.tokens,
            "seconds": time.perf_counter() - self._begun,
            "curve": curve,
        }
        return replace(self._record, **{**values, **fields})
