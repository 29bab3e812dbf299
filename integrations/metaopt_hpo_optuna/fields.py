"""Where a trial keeps size, tokens, batch and lr, and the names of the attributes this package writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from optuna.trial import FrozenTrial

from metaopt_hpo.errors import MetaOptWarning
from metaopt_hpo.trials import record_json
from metaopt_hpo.trials.quantities import positive
from metaopt_hpo.trials.record import TrialRecord, Tuning
from metaopt_hpo.trials.sources import Sources
from metaopt_hpo.trials.steps import Reports, by_tokens

RECORD = "metaopt:record"
"""User attribute: the whole trial record as a JSON object, written when the run ends."""

REASON = "metaopt:reason"
"""User attribute: one sentence, why the trial was pruned, diverged or failed, or that it learned nothing."""

CHECKPOINT = "metaopt:checkpoint"
"""User attribute: file of the run's checkpoint; a retried trial inherits it."""

FLOPS_PER_TOKEN = "metaopt:flops_per_token"
"""User attribute: training FLOPs per token, so that a killed trial's cost follows from its last report."""

COMPARABLE = "metaopt:comparable_from"
"""User attribute: part of the run from which on its loss may be compared with runs of other strategies."""

CONFIGURATION = "metaopt:configuration"
"""User attribute: digest of everything that a run is a function of, to notice one that is made again."""

REPEATS = "metaopt:repeats"
"""User attribute: number of the finished trial whose value this one took instead of training."""

SPARED = "metaopt:spared"
"""User attribute: the law would stop the trial, and it is let finish to see whether the law is right."""

LEASE = "metaopt:lease"
"""User attribute: Unix time until which a running trial counts as alive."""


class StudyWarning(MetaOptWarning):
    """Something about a study keeps a law from being used; the message says what to do.

    Examples:
        >>> import warnings
        >>> from metaopt_hpo_optuna import StudyWarning
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", StudyWarning)
        ...
    """


@dataclass(frozen=True, slots=True)
class Fields(Sources):
    """Which parameter or user attribute holds each quantity; a number stands for every trial.

    Args:
        models: choices of the parameter `model`, each with its (size, tokens); a trial that has chosen one needs
            no further attribute.
        epoch_tokens: tokens of an epoch, where reports count epochs.
    """

    models: Mapping[Any, tuple[float, float]] = field(default_factory=dict)
    model: str = "model"
    epoch_tokens: str | float = "tokens_per_epoch"

    kind: ClassVar[str] = "a parameter or user attribute"
    fixed: ClassVar[tuple[str, ...]] = ("size", "tokens", "batch", "epoch_tokens")

    def __post_init__(self) -> None:
        Sources.__post_init__(self)
        if not isinstance(self.model, str) or not self.model:
            raise ValueError(f"model must be the name of a parameter, got {self.model!r}")
        for choice, pair in self.models.items():
            if not is_pair(pair):
                raise ValueError(
                    f"models must map each choice of {self.model!r} to (size, tokens), both numbers > 0, "
                    f"got {choice!r}: {pair!r}"
                )

    def get(self, trial: FrozenTrial, name: str) -> float | None:
        """The quantity `name` ("size", "tokens", "batch", "lr", "epoch_tokens"); None where the trial has none.

        Raises:
            ValueError: the parameter and the user attribute of that name disagree, or it is no positive number.
        """
        source = getattr(self, name)
        if not isinstance(source, str):
            return float(source)
        param, attribute = trial.params.get(source), trial.user_attrs.get(source)
        if param is not None and attribute is not None and param != attribute:
            raise ValueError(
                f"trial {trial.number} has the parameter {source}={param!r} and the user attribute "
                f"{source}={attribute!r}; keep one of them, a trial has one {name}"
            )
        value = param if param is not None else attribute
        if value is None and name in ("size", "tokens") and trial.params.get(self.model) in self.models:
            return float(self.models[trial.params[self.model]][name == "tokens"])
        if value is None:
            return None
        number = positive(value)
        if number is None:
            raise ValueError(
                f"{source} of trial {trial.number} must be a finite number > 0 ({name}), got {value!r}"
            )
        return number


def is_pair(value: Any) -> bool:
    """Whether it is (size, tokens)."""
    return isinstance(value, tuple | list) and len(value) == 2 and all(positive(v) is not None for v in value)


def record_from_json(data: Any) -> TrialRecord:
    """The record in a trial's attribute.

    Raises:
        TableError: the attribute is not one of ours; the message names what is wrong.
    """
    return record_json.record_from_json(data, f"the attribute {RECORD!r} of a trial")


def strategy_of(trial: FrozenTrial) -> str:
    """Name of the strategy of a trial, empty where it has none."""
    return str(trial.params.get("strategy", trial.user_attrs.get("strategy", "")))


def tuning_of(trial: FrozenTrial) -> Tuning:
    """Who sets the trial's learning rate: what it recorded, or what the strategy of that name does."""
    recorded = trial.user_attrs.get("tuning")
    if recorded in ("self", "external"):
        return "self" if recorded == "self" else "external"
    strategy = strategy_of(trial)
    if not strategy:
        return ""
    from metaopt_hpo.strategies import registry  # imports torch

    return registry.tuning_of(strategy)


def comparable_from(trial: FrozenTrial) -> float:
    """Part of its run from which on a trial's loss may be compared with runs of other strategies."""
    said = trial.user_attrs.get(COMPARABLE)
    if isinstance(said, int | float) and 0 <= said <= 1:
        return float(said)
    return 1.0 if tuning_of(trial) == "self" else 0.0


def planned_of(trial: FrozenTrial) -> float | None:
    """Planned tokens as `TrialRun` writes them; None where the trial does not say."""
    return positive(trial.user_attrs.get("tokens", trial.params.get("tokens")))


def reports_of(trial: FrozenTrial, names: Fields) -> Reports:
    """A trial's reports by tokens; see `trials.steps.by_tokens`."""
    planned = names.get(trial, "tokens")
    if planned is None or not trial.intermediate_values:
        return Reports()
    batch, epoch = names.get(trial, "batch"), names.get(trial, "epoch_tokens")
    reports = by_tokens(trial.intermediate_values, planned, batch, epoch)
    if not reports.by_epoch:
        return reports
    remedy = f"or set the user attribute {names.epoch_tokens!r} where steps are epochs"
    return replace(reports, problem=f"{reports.problem}, trial.report(loss, tokens), {remedy}")
