"""Checks of options and horizons: what is wrong, and what is allowed, in one sentence."""

from __future__ import annotations

import difflib
import math
import numbers
import re
from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metaopt_hpo.strategies.errors import StrategyError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def close_to(word: object, known: Iterable[str]) -> str:
    """ " (did you mean 'adamw'?)" where a known word is close to this one, else nothing."""
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def one_of(words: Iterable[str]) -> str:
    """Quoted words as a sentence names them: 'a', 'b' or 'c'."""
    *first, last = map(repr, words)
    return f"{', '.join(first)} or {last}" if first else last


def check_numbers(config: DataclassInstance) -> None:
    """Raise ValueError for the first field that asks for numbers and holds true or false, which Python counts as 1, 0.

    What a field asks for is read off its annotation; one that allows a `bool`, or anything, is left alone.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        parts = value if isinstance(value, tuple | list) else (value,)
        if any(isinstance(x, bool) for x in parts):
            words = set(re.findall(r"\w+", field.type if isinstance(field.type, str) else str(field.type)))
            if words & {"int", "float"} and not words & {"bool", "Any", "object"}:
                raise ValueError(f"{field.name} must be a number, got {value!r}")


def check_positive(config: object, *names: str) -> None:
    """Raise ValueError for the first named field that is not a finite positive number."""
    for name in names:
        value = getattr(config, name)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or value <= 0
        ):
            raise ValueError(f"{name} must be a finite number > 0, got {value!r}")


def check_fraction(config: object, *names: str) -> None:
    """Raise ValueError for the first named field outside [0, 1]."""
    for name in names:
        value = getattr(config, name)
        if not (isinstance(value, int | float) and 0 <= value <= 1):
            raise ValueError(f"{name} is a fraction of the run and must lie in [0, 1], got {value!r}")


def check_horizon(horizon: int) -> int:
    """Return the horizon as an int, or raise ValueError."""
    whole = isinstance(horizon, numbers.Real) and not isinstance(horizon, bool) and math.isfinite(horizon)
    if not whole or int(horizon) != horizon or horizon < 1:
        raise ValueError(
            f"horizon must be a positive whole number of optimizer steps, got {horizon!r}; with gradient accumulation "
            "count optimizer steps, math.ceil(batches / accumulation); where it is not known, give the steps you mean "
            "to take: past them the last step size stays in force"
        )
    return int(horizon)


def check_is_loss(loss: object) -> None:
    """Raise StrategyError for what is no loss: a closure, as torch's optimizers take one, or anything else."""
    if loss is None or isinstance(loss, numbers.Real | Tensor):
        return
    if callable(loss):
        raise StrategyError(
            "run.step() takes the loss and no closure: write loss = closure(); run.step(loss), or "
            "run.as_optimizer().step(closure)"
        )
    raise StrategyError(f"run.step() takes the loss, a number or a tensor of one, got {type(loss).__name__}")


def scalar(loss: Tensor | float | None, device: torch.device) -> Tensor | None:
    """A loss as a 0-d tensor, from whatever a loop has: one number, `.item()`, or a tensor of one number.

    Raises:
        StrategyError: several numbers, or none.
    """
    check_is_loss(loss)
    if loss is not None and not isinstance(loss, Tensor):
        return torch.tensor(float(loss), device=device)
    if loss is not None and loss.numel() != 1:
        raise StrategyError(
            f"the loss has shape {tuple(loss.shape)}: give one number, its mean, to run.step()"
        )
    return loss.reshape(()) if loss is not None and loss.ndim else loss
