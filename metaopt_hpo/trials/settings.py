"""Settings of a run that move its optimal learning rate: schedule, optimizer, parametrisation, weight decay …

One home for what tools and people call them. A run of a strategy of ours tells its schedule by the strategy; every
other column of a table is kept as a hyperparameter under its own name, and is read from there. No pandas here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from metaopt_hpo.trials.quantities import normalise, parts

SCHEDULES = ("constant", "cosine", "linear", "wsd")
"""Schedules by the names of our strategies."""

CALLED: dict[str, tuple[str, ...]] = {
    "schedule": (
        "schedule", "lr_schedule", "lr_scheduler", "lr_scheduler_type", "lr_scheduler_name", "scheduler",
        "lr_decay_style", "scheduler_type", "lr_decay", "decay_schedule", "learning_rate_schedule",
    ),
    "optimizer": ("optimizer", "optim", "optimizer_name", "optimizer_type", "optimizer_class", "opt", "optimiser"),
    "parametrisation": (
        "parametrisation", "parametrization", "parameterisation", "parameterization", "mup", "use_mup", "is_mup",
        "mu_p", "mu_param", "mup_enabled",
    ),
    "weight_decay": ("weight_decay", "wd", "weightdecay", "adam_weight_decay", "optimizer_weight_decay"),
    "beta1": ("beta1", "adam_beta1", "b1", "beta_1"),
    "beta2": ("beta2", "adam_beta2", "b2", "beta_2"),
    "momentum": ("momentum", "sgd_momentum"),
    "warmup": ("warmup", "warmup_ratio", "warmup_fraction"),
    "dropout": ("dropout", "dropout_rate"),
}  # fmt: skip
"""Our name → what else a setting is called, normalised; the surest first."""

TEXT = ("schedule", "optimizer", "parametrisation")
"""Settings whose values are words."""

WORDS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "schedule": (
        ("wsd", ("wsd", "warmup_stable_decay", "trapezoid", "stable_decay")),
        ("cosine", ("cosine", "cos")),
        ("linear", ("linear", "d2z", "decay_to_zero")),
        ("constant", ("constant", "const", "none", "no", "fixed", "null", "false")),
    ),
    "optimizer": (
        ("adamw", ("adamw", "adam_w")),
        ("adafactor", ("adafactor",)),
        ("adam", ("adam",)),
        ("muon", ("muon",)),
        ("lion", ("lion",)),
        ("sgdm", ("sgdm",)),
        ("sgd", ("sgd",)),
    ),
    "parametrisation": (
        ("mup", ("mup", "true", "1", "yes", "maximal_update", "mu_p")),
        ("sp", ("sp", "std", "standard", "false", "0", "no", "none")),
    ),
}
"""By setting: our word, and how words begin that mean it (after `normalise`)."""


def word(name: str, value: Any) -> str:
    """A setting's value in our words; one that we have none for stays as it is, normalised. Empty where unknown."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = normalise(value)
    for ours, beginnings in WORDS.get(name, ()):
        if any(text == b or text.startswith(f"{b}_") for b in beginnings):
            return ours
        if name != "parametrisation" and any(len(b) > 4 and text.startswith(b) for b in beginnings):
            return ours
    return text


def find(params: Mapping[str, Any], name: str) -> Any:
    """The value of a setting among hyperparameters, whatever it is called there; None where it is not among them."""
    if name in params:
        return params[name]
    ranked = {called: i for i, called in enumerate(CALLED.get(name, (name,)))}
    best: tuple[int, Any] | None = None
    for key, value in params.items():
        _, rest = parts(key)
        for text in (rest, rest.rsplit(".", 1)[-1]):
            rank = ranked.get(text)
            if rank is not None and (best is None or rank < best[0]):
                best = rank, value
    if best is None and name in TEXT:  # `optimizer.name`, `lr_scheduler/type`
        for key, value in params.items():
            _, rest = parts(key)
            if isinstance(value, str) and rest.removesuffix("_name").removesuffix("_type") in ranked:
                return value
    return None if best is None else best[1]


def setting(params: Mapping[str, Any], name: str, strategy: str = "") -> str:
    """A setting whose values are words, of one run; empty where nothing says it.

    Args:
        params: hyperparameters of the run.
        name: one of `TEXT`, or any hyperparameter.
        strategy: of the run; ours are schedules.
    """
    if name == "schedule" and strategy in SCHEDULES:
        return strategy
    found = word(name, find(params, name))
    if not found and name == "optimizer":
        base = word(name, params.get("base"))
        found = base if base in {w for w, _ in WORDS["optimizer"]} else ""
    if not found and name == "schedule" and strategy:
        return normalise(strategy)
    return found
