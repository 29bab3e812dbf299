"""What a search tries: an objective turns a configuration into a trial record, by training or by look-up."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.trials.record import TrialRecord

Report = Callable[[int, float], str | None]
"""Called at each point of the token grid with (tokens, held-out loss); a reason to stop, or None."""


class ObjectiveError(MetaOptError):
    """An objective was asked for a configuration it does not have."""


class ObjectiveUnavailable(ObjectiveError):
    """What every run needs is missing: data, a device. It is no trial's fault, and may be there another time."""


def no_report(tokens: int, loss: float) -> None:
    """Let every run go to its end."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One point of the search: what to train, for how long, and how its learning rate is set."""

    size: float
    """Trainable non-embedding parameters; one of the objective's `sizes`."""
    tokens: float
    batch: float
    """Tokens per optimizer step."""
    lr: float
    """Peak lr of a schedule, or start of a strategy that finds its own."""
    strategy: str = "wsd"
    options: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    """Further options of the strategy."""
    seed: int = 0
    """Of initialisation and data order; equal across methods for common random numbers."""

    def record(self, *, tokens: float, loss: float, **fields: Any) -> TrialRecord:
        """A trial of this configuration that has come to `tokens`; `fields` are further ones of its record."""
        own: dict[str, Any] = {
            "size": self.size,
            "batch": self.batch,
            "lr": self.lr,
            "strategy": self.strategy,
            "seed": self.seed,
            "target_tokens": self.tokens,
            "params": dict(self.options),
        }
        return TrialRecord(**{**own, "tokens": tokens, "loss": loss, **fields})


def settled(record: TrialRecord) -> TrialRecord:
    """The record of a run that has ended: one that says it is complete and has no finite loss has diverged."""
    if record.state not in ("complete", "running") or math.isfinite(record.loss):
        return record
    return replace(record, state="diverged", reason=f"the final loss is {record.loss}")


class Objective(Protocol):
    """Independent of the engine that schedules trials."""

    name: str

    @property
    def sizes(self) -> Sequence[float]:
        """Sizes there are, ascending."""
        ...

    def cost(self, configuration: Configuration) -> float:
        """FLOPs of running the configuration to its end."""
        ...

    def run(self, configuration: Configuration, report: Report = no_report) -> TrialRecord:
        """Run it; never raises for a run that diverges or is stopped, whose record says so in `state`.

        Raises:
            ObjectiveError: no such configuration.
        """
        ...


@runtime_checkable
class Checkable(Protocol):
    """An objective that can say beforehand whether what its runs need is there."""

    def check(self) -> None:
        """Look, without training.

        Raises:
            ObjectiveUnavailable: it is not.
        """
        ...


@runtime_checkable
class Checkpointing(Protocol):
    """An objective that can go on with a run that another process began."""

    def run_saved(self, configuration: Configuration, report: Report, checkpoint: Path) -> TrialRecord:
        """Run as `Objective.run`, saving to a file, from which the run goes on exactly where it exists.

        What was reported before is reported again, for the process may have ended between saving and reporting.
        """
        ...
