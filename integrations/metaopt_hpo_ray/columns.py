"""What a Tune trial's config says of it: where it keeps size, tokens, batch and lr."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from ray.tune.experiment import Trial

from metaopt_hpo.errors import MetaOptWarning
from metaopt_hpo.strategies.registry import get, tuning_of
from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.logged_trial import LoggedTrial
from metaopt_hpo.trials.quantities import at, flatten, positive
from metaopt_hpo.trials.sources import Sources

REASON_LENGTH = 300

ENDED_BY_SCHEDULER = "its scheduler, or a stopper, ended it before its planned tokens"
"""Why a trial was stopped by something that gives no reason."""


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


def describe(config: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """What a trial's config says of it, as the fields of a book's entry."""
    found = {name: columns.get(config, name) for name in ("size", "tokens", "batch", "lr")}
    facts: dict[str, Any] = {name: value for name, value in found.items() if value is not None}
    strategy, seed = config.get("strategy"), config.get("seed")
    if isinstance(strategy, str):
        facts["strategy"] = strategy
        facts["tuning"] = tuning_of(strategy)
        if facts["tuning"] == "self" and "lr" not in facts:
            facts["lr"] = _start(strategy)
    if isinstance(seed, int) and not isinstance(seed, bool):
        facts["seed"] = seed
    facts["params"] = columns.others(config)
    return facts


def know(book: Logbook, trial: Trial, columns: Columns) -> LoggedTrial:
    """Enter what a trial's config says of it now: a searcher, or another scheduler, may have changed it."""
    book.add(trial.trial_id, **describe(trial.config, columns))
    lr = columns.get(trial.config, "lr")
    if lr is not None:
        book.set_lr(trial.trial_id, lr)
    return book.entries[trial.trial_id]


@lru_cache(maxsize=64)
def _start(strategy: str) -> float:
    """The step size at which a strategy starts where nobody gives one."""
    return float(get(strategy)().lr)


def why_failed(trial: Any) -> str:
    """The last line of the error that Tune recorded for a trial."""
    try:
        text = (
            Path(trial.error_file).read_text(encoding="utf-8", errors="replace") if trial.error_file else ""
        )
    except (OSError, RuntimeError, AttributeError):
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:REASON_LENGTH] if lines else "the trial's process failed"
