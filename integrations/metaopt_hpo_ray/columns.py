"""Where a Tune trial keeps size, tokens, batch and lr, and the names of what `TrialRun` reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metaopt_hpo.errors import MetaOptWarning
from metaopt_hpo.strategies.registry import tuning_of

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


class TuneWarning(MetaOptWarning):
    """Something about an experiment keeps a law or a restore from working; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which entry of a trial's config holds each quantity; a number stands for every trial.

    Args:
        size: trainable non-embedding parameters.
        tokens: planned training tokens.
        batch: tokens per optimizer step.
        lr: the knob. Nested entries are written with slashes, "model/size".
    """

    size: str | float = "size"
    tokens: str | float = "tokens"
    batch: str | float = "batch"
    lr: str = "lr"

    def __post_init__(self) -> None:
        for name in ("size", "tokens", "batch", "lr"):
            source = getattr(self, name)
            if isinstance(source, str) and source:
                continue
            if name == "lr" or not positive(source):
                raise ValueError(
                    f"{name} must be the name of an entry of the trial's config"
                    f"{'' if name == 'lr' else ' or a positive number'}, got {source!r}"
                )

    def get(self, config: Mapping[str, Any], name: str) -> float | None:
        """The quantity `name` ("size", "tokens", "batch", "lr"); None where there is none, or no positive number."""
        source = getattr(self, name)
        value = look_up(config, source) if isinstance(source, str) else source
        return float(value) if positive(value) else None

    def missing(self, space: Mapping[str, Any]) -> list[str]:
        """The entries that a parameter space lacks; a strategy that finds its learning rate itself needs no lr."""
        sources: tuple[str | float, ...] = (self.size, self.tokens, self.batch)
        strategy = look_up(space, "strategy")
        names = getattr(strategy, "categories", [strategy])
        if not all(isinstance(n, str) and tuning_of(n) == "self" for n in names):
            sources = (*sources, self.lr)
        return [s for s in sources if isinstance(s, str) and look_up(space, s) is None]

    def unusable(self, space: Mapping[str, Any]) -> list[str]:
        """Entries of a parameter space with a value, fixed or to choose from, that is no positive number."""
        found = []
        for source in (self.size, self.tokens, self.batch, self.lr):
            entry = look_up(space, source) if isinstance(source, str) else None
            grid = entry.get("grid_search") if isinstance(entry, Mapping) else None
            values = grid if grid is not None else getattr(entry, "categories", [entry])
            found += [
                f"{source}={v!r}" for v in values if isinstance(v, int | float | str) and not positive(v)
            ]
        return found

    def others(self, config: Mapping[str, Any]) -> dict[str, float | int | str | bool]:
        """Every other plain entry of the config, nested ones with slashes."""
        own = {s for s in (self.size, self.tokens, self.batch, self.lr) if isinstance(s, str)}
        return {
            k: v
            for k, v in flatten(config).items()
            if k not in own | {"strategy", "seed"} and isinstance(v, int | float | str | bool)
        }


def look_up(config: Mapping[str, Any], path: str) -> Any:
    """The entry at `path`, whose parts are separated by slashes; None where there is none."""
    if path in config:
        return config[path]
    value: Any = config
    for part in path.split("/"):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, its keys joined by slashes."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            out.update(flatten(value, f"{name}/"))
        else:
            out[name] = value
    return out


def positive(value: Any) -> bool:
    """True for a finite number above zero, NumPy's included."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return False
    try:
        number = float(value)
    except (TypeError, ValueError):
        return False
    return math.isfinite(number) and number > 0
