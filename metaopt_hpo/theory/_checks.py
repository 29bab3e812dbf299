"""Checks of numbers that the files of theory share; each error names the field, the value and what is allowed."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def check_number(name: str, value: Any, *, positive: bool) -> None:
    """A finite number above 0, or at least 0."""
    number = float(value) if isinstance(value, Real) else math.nan
    good = math.isfinite(number) and (number > 0 if positive else number >= 0)
    if not good:
        raise ValueError(f"{name} must be a finite number {'> 0' if positive else '>= 0'}, got {value!r}")


def check_tokens(tokens: ArrayLike) -> None:
    """Budgets of at least one unit: batch and steps are at least 1."""
    d = np.asarray(tokens, dtype=float)
    if not np.all(np.isfinite(d) & (d >= 1)):
        raise ValueError(f"tokens must be finite and at least 1, got {tokens!r}")


def check_momentum(a: NDArray[np.float64]) -> None:
    """Momentum in (0, 1]."""
    if not np.all((a > 0) & (a <= 1)):
        raise ValueError(f"momentum a must lie in (0, 1] (it is 1 − β₁), got {a!r}")


def check_batch(batch: float, tokens: float) -> None:
    """No batch above the tokens."""
    if not 0 < batch <= tokens:
        raise ValueError(f"batch must lie in (0, tokens={tokens:g}], got {batch!r}")
