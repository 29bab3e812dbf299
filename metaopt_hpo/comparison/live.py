"""Runs that can be taken up again: what a method needs that pauses trials, or changes the lr of one midway.

`Objective.run` is a whole run. Synchronous HyperBand halts a rung of runs until the last has come, and population
based training goes on from another run's weights at another learning rate. Both need no more than this: open a
run, advance it to a number of tokens, save it, and open a run again, of the same configuration or of another,
from what was saved.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from metaopt_hpo.atomic import write_text
from metaopt_hpo.comparison.objective import Configuration, ObjectiveError
from metaopt_hpo.trials.record import Curve, TrialRecord

if TYPE_CHECKING:
    from metaopt_hpo.training.run import TrainingRun

Point = tuple[float, float]
"""(tokens, held-out loss)."""


class LiveRun(Protocol):
    """A run under way."""

    @property
    def tokens(self) -> float:
        """Training tokens seen, those before it was saved included."""
        ...

    def advance(self, tokens: float) -> Point:
        """Go on until at least `tokens` have been seen, or to the end; (tokens, held-out loss) there.

        Never raises for a run that diverges: the loss is NaN, and the record says so in `state`.
        """
        ...

    def save(self, path: Path) -> None:
        """Write all that a run needs to go on exactly."""
        ...

    def record(self) -> TrialRecord:
        """The run so far; its `cost` is that of the weights as they are, whoever trained them."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """An objective whose runs can be taken up again."""

    name: str

    @property
    def changes_lr(self) -> bool:
        """True where a saved run may go on at another lr. A table holds no such run."""
        ...

    def stops_at(self, configuration: Configuration, tokens: float) -> float:
        """The tokens at which `advance(tokens)` really stops: those of a whole step, or of a row."""
        ...

    def open(self, configuration: Configuration, saved: Path | None = None) -> LiveRun:
        """Begin a run, or go on with a saved one.

        Raises:
            ObjectiveError: no such configuration, or not one that can go on from what was saved.
            CheckpointError: the file is damaged or foreign.
        """
        ...


class LiveTraining:
    """A training run, driven from outside its loop.

    Args:
        run: made and not begun.
        steps: a function that takes the run's steps one after the other, yielding after each.
        saved: a checkpoint to go on from; the run's own lr stays.
    """

    def __init__(
        self, run: TrainingRun, steps: Callable[[TrainingRun], Iterator[None]], saved: Path | None
    ) -> None:
        from metaopt_hpo.training import checkpoint

        self._run = run
        if saved is not None:
            run.load_state_dict(checkpoint.load(saved))
        self._steps = steps(run)

    @property
    def tokens(self) -> float:
        """Training tokens seen."""
        return self._run.tokens

    def advance(self, tokens: float) -> Point:
        """Train on; see `LiveRun.advance`."""
        from metaopt_hpo.training.ending import RunStopped

        try:
            while self._run.tokens < tokens and next(self._steps, self) is not self:
                pass
            self._run.report_now()
        except RunStopped:
            return self._run.tokens, math.nan
        return self._run.tokens, self._run.loss

    def save(self, path: Path) -> None:
        """Write model, optimizer, strategy, recorder and random generators."""
        from metaopt_hpo.training import checkpoint

        checkpoint.save(path, self._run.state_dict())

    def record(self) -> TrialRecord:
        """The run so far."""
        return self._run.record()


class LiveReplay:
    """A run of a table, read point by point.

    Args:
        record: the whole run, its curve included.
        saved: where it stood.

    Raises:
        ObjectiveError: what was saved is another run's: no table knows what becomes of one run's weights at
            another's learning rate.
    """

    def __init__(self, record: TrialRecord, saved: Path | None) -> None:
        self._whole = record
        self._at = -1
        if saved is None:
            return
        try:
            state = json.loads(saved.read_text(encoding="utf-8"))
            run, at = state["run"], int(state["at"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ObjectiveError(f"{saved} is not the place of a replayed run ({error!r})") from error
        if run != self._identity():
            raise ObjectiveError(
                f"a replayed run of lr {record.lr:.4g} cannot go on from one of lr {run[-1]:.4g}: the table holds no "
                "run whose lr changed midway; choose a method that leaves lr alone, or train"
            )
        self._at = at

    @property
    def tokens(self) -> float:
        """Tokens of the last row that was read."""
        return self._curve.tokens[self._at] if self._at >= 0 else 0.0

    @property
    def _curve(self) -> Curve:
        assert self._whole.curve is not None
        return self._whole.curve

    def _identity(self) -> list[float]:
        w = self._whole
        return [w.size, w.target_tokens, w.batch, w.lr]

    def advance(self, tokens: float) -> Point:
        """Read on; see `LiveRun.advance`."""
        last = len(self._curve.tokens) - 1
        while self.tokens < tokens and self._at < last:
            self._at += 1
        return self.tokens, self._curve.loss[self._at]

    def save(self, path: Path) -> None:
        """Write the place in the curve."""
        write_text(path, json.dumps({"run": self._identity(), "at": self._at}))

    def record(self) -> TrialRecord:
        """The run so far."""
        end = self._at + 1
        whole = end == len(self._curve.tokens)
        return replace(
            self._whole,
            tokens=self.tokens,
            loss=self._curve.loss[self._at] if end else math.nan,
            state=self._whole.state if whole else "running",
            cost=self._whole.cost * self.tokens / self._whole.tokens,
            curve=Curve(self._curve.tokens[:end], self._curve.loss[:end]) if end else None,
        )
