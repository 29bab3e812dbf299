"""Where a Tune trial keeps size, tokens, batch and lr, and the names of what `TrialRun` reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from metaopt_hpo.errors import MetaOptWarning
from metaopt_hpo.strategies.registry import tuning_of
from metaopt_hpo.trials.quantities import at, flatten, positive
from metaopt_hpo.trials.sources import Sources

METRIC = "loss"
"""Result: held-out loss, nats per token; the default metric."""

PROGRESS = "tokens_seen"
"""Result: training tokens seen."""

COST = "flops"
"""Result: training FLOPs of the run up to this point of its curve; goes back with a retry."""

WORK = "flops_here"
"""Result: training FLOPs of this process alone. The sum over processes is what a trial has cost."""

PROCESS = "process"
"""Result: name of the process that ran this part of the trial."""

STATE = "run_state"
REASON = "run_reason"
"""Results: how the run stands, and why, as in a trial record."""

NOTE = "run_note"
"""Result: what happened to the run on its way, for its row of the table."""


def agreed_metric(what: str, own: str | None, told: str | None, mode: str | None) -> str | None:
    """The metric that something of ours judges: its own, or the Tuner's.

    Args:
        what: the class, for the message.
        own, told: the metric it was made with, and the one that `TuneConfig` names.
        mode: of either.

    Raises:
        ValueError: the two differ, or the mode is not "min".
    """
    if mode not in (None, "min"):
        raise ValueError(
            f"{what} needs mode='min', got {mode!r}: a law is of a positive loss; report the loss, or for a score "
            "1 − score"
        )
    if told and own and told != own:
        raise ValueError(
            f"TuneConfig has metric={told!r} and {what} has metric={own!r}; give it in one place"
        )
    return told or own


class TuneWarning(MetaOptWarning):
    """Something about an experiment keeps a law or a restore from working; the message says what to do.

    Examples:
        >>> import warnings
        >>> from metaopt_hpo_ray import TuneWarning
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", TuneWarning)
        ...
    """


@dataclass(frozen=True, slots=True)
class Columns(Sources):
    """Which entry of a trial's config holds each quantity; nested entries are written with slashes, "model/size"."""

    kind: ClassVar[str] = "an entry of the trial's config"

    def get(self, config: Mapping[str, Any], name: str) -> float | None:
        """The quantity `name` ("size", "tokens", "batch", "lr"); None where there is none, or no positive number."""
        source = getattr(self, name)
        return positive(at(config, source) if isinstance(source, str) else source)

    def missing(self, space: Mapping[str, Any]) -> list[str]:
        """The entries that a parameter space lacks; a strategy that finds its learning rate itself needs no lr."""
        sources: tuple[str | float, ...] = (self.size, self.tokens, self.batch)
        strategy = at(space, "strategy")
        names = getattr(strategy, "categories", [strategy])
        if not all(isinstance(n, str) and tuning_of(n) == "self" for n in names):
            sources = (*sources, self.lr)
        return [s for s in sources if isinstance(s, str) and at(space, s) is None]

    def unusable(self, space: Mapping[str, Any]) -> list[str]:
        """Entries of a parameter space with a value, fixed or to choose from, that is no positive number."""
        found = []
        for source in (self.size, self.tokens, self.batch, self.lr):
            entry = at(space, source) if isinstance(source, str) else None
            grid = entry.get("grid_search") if isinstance(entry, Mapping) else None
            values = grid if grid is not None else getattr(entry, "categories", [entry])
            found += [
                f"{source}={v!r}" for v in values if isinstance(v, int | float | str) and positive(v) is None
            ]
        return found

    def others(self, config: Mapping[str, Any]) -> dict[str, float | int | str | bool]:
        """Every other plain entry of the config, nested ones with slashes."""
        own = self.names()
        return {
            k: v
            for k, v in flatten(config).items()
            if k not in own | {"strategy", "seed"} and isinstance(v, int | float | str | bool)
        }
