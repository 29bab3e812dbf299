"""What the optimum depends on: logarithms of size and tokens, and further coordinates, in numbers or in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SCALES = ("size", "tokens")


@dataclass(frozen=True)
class Axes:
    """Which coordinates the optimum depends on, and where they are centred.

    Attributes:
        names: subset of ("size", "tokens") in this order, one alone where the table varies only one of them or
            both in proportion; then the names of further hyperparameters; one in words has an indicator
            "schedule=cosine" for each value but the first.
        centre: mean of each over the cells, so that intercepts and slopes are nearly independent.
        defaults: what each further hyperparameter is taken to be where a caller does not say.
        levels: values of each setting in words, the most frequent first; also of those that did not vary.
    """

    names: tuple[str, ...]
    centre: Array
    defaults: Mapping[str, float | str] = field(default_factory=dict)
    levels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def scale_names(self) -> tuple[str, ...]:
        """The axes of scale: names without extras."""
        return tuple(n for n in self.names if n in SCALES)

    def design(
        self, size: Array | float, tokens: Array | float, extra: Mapping[str, Any] | None = None
    ) -> Array:
        """Rows (1, t₁, …) for each size and tokens.

        Args:
            size, tokens: they broadcast.
            extra: overrides defaults of further coordinates; words as text, or as their index in `levels`.
        """
        size, tokens = np.broadcast_arrays(np.asarray(size, dtype=float), np.asarray(tokens, dtype=float))
        columns = [np.ones(size.shape)]
        for name, centre in zip(self.names, self.centre, strict=True):
            if name == "size":
                value: Array = np.log(size)
            elif name == "tokens":
                value = np.log(tokens)
            else:
                value = np.broadcast_to(self._further(name, extra or {}), size.shape)
            columns.append(value - centre)
        return np.stack(columns, axis=-1)

    def _further(self, name: str, extra: Mapping[str, Any]) -> Array:
        key, _, level = name.partition("=")
        given = extra.get(key, self.defaults.get(key, math.nan))
        if not level:
            return coordinate(name, np.asarray(given, dtype=float))
        values = np.asarray(given)
        wanted = level if values.dtype.kind in "UO" else self.levels[key].index(level)
        return np.asarray(values == wanted, dtype=float)

    def features(
        self,
        wanted: Sequence[str],
        size: Array | float,
        tokens: Array | float,
        extra: Mapping[str, Any] | None,
    ) -> Array:
        """Products of coordinates ("weight_decay", "weight_decay*weight_decay") less the same at the defaults."""
        out = []
        for values in (extra, None):
            rows = self.design(size, tokens, values)
            at = {name: rows[..., 1 + i] for i, name in enumerate(self.names)}
            products = [np.prod([at[n] for n in f.split("*")], axis=0) for f in wanted]
            out.append(np.stack(products, axis=-1) if products else np.zeros((*rows.shape[:-1], 0)))
        return np.asarray(out[0] - out[1])


def allowed(name: str) -> tuple[float, float]:
    """The open interval in which a further hyperparameter in numbers lies."""
    return (0.0, 1.0) if name.startswith(("beta", "momentum")) else (0.0, math.inf)


def coordinate(name: str, value: Array) -> Array:
    """A further hyperparameter as the surface sees it: ln(1 − β) for betas and momenta, else ln."""
    if allowed(name)[1] == 1.0:
        return np.asarray(np.log1p(-value))
    return np.asarray(np.log(value))
