"""The loss surface over size, tokens, batch and lr: a bowl in (ln lr, ln batch) whose bottom moves as a power law.

    ln L = F(N, D) + ½ h₁₁ u² + h₁₂ u v + ½ h₂₂ v² + c u³,   u = ln lr − ln lr*,  v = ln B − ln B*
    ln lr* = a₀ + a·t,   ln B* = b₀ + b·t,   t = (ln N/N₀, ln D/D₀, …)

The cubic term lets too large an lr hurt more than too small a one; past its inflection the bowl goes on as a
straight line, so that one minimum stays one. The floor F is another room's (`scaling.forms.floor`). Working in ln L
makes everything but the floor's scale independent of the loss's unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STRAIGHT = 0.8
"""The cubic gives way to a straight line at this part of the way to its inflection."""


CLOSED = 0.98
"""h₁₂² over h₁₁h₂₂ from which a bowl counts as open: its minimum would lie seven half-widths along the valley."""


CELL_SCATTER = 0.15
"""Standard deviation, ln units, of a cell's true optimum about the law."""

RUN_ERROR = 0.4
"""Error of an optimum located by two runs, ln units; falls as 1/√(runs − 1)."""


@dataclass(frozen=True)
class Axes:
    """Which logarithms the optimum depends on, and where they are centred.

    Attributes:
        names: subset of ("size", "tokens") in this order, one alone where the table varies only one of them or
            both in proportion; then the names of extra hyperparameters.
        centre: mean of each over the cells, so that intercepts and slopes are nearly independent.
        defaults: what each extra hyperparameter is taken to be where a caller does not say.
    """

    names: tuple[str, ...]
    centre: Array
    defaults: Mapping[str, float] = field(default_factory=dict)

    @property
    def scale_names(self) -> tuple[str, ...]:
        """The axes of scale: names without extras."""
        return tuple(n for n in self.names if n in ("size", "tokens"))

    def design(
        self, size: Array | float, tokens: Array | float, extra: Mapping[str, Array | float] | None = None
    ) -> Array:
        """Rows (1, t₁, …) for each size and tokens; `extra` overrides defaults of further coordinates."""
        size, tokens = np.broadcast_arrays(np.asarray(size, dtype=float), np.asarray(tokens, dtype=float))
        columns = [np.ones(size.shape)]
        for name, centre in zip(self.names, self.centre, strict=True):
            if name == "size":
                value: Array = np.log(size)
            elif name == "tokens":
                value = np.log(tokens)
            else:
                given = (extra or {}).get(name, self.defaults.get(name, math.nan))
                value = np.broadcast_to(coordinate(name, np.asarray(given, dtype=float)), size.shape)
            columns.append(value - centre)
        return np.stack(columns, axis=-1)


def coordinate(name: str, value: Array) -> Array:
    """A further hyperparameter as the surface sees it: ln(1 − β) for betas and momenta, else ln."""
    if name.startswith(("beta", "momentum")):
        return np.asarray(np.log1p(-value))
    return np.asarray(np.log(value))


@dataclass(frozen=True)
class Surface:
    """Parameters of the bowl.

    Attributes:
        a: (1 + axes) intercept and slopes of ln lr*.
        b: the same of ln B*, or of the batch the table used where it was not varied.
        h: (h₁₁, h₁₂, h₂₂).
        skew: c.
        has_batch: whether a batch optimum is identified.
    """

    a: Array
    b: Array
    h: Array
    skew: float
    has_batch: bool

    def centre(self, design: Array) -> tuple[Array, Array]:
        """(ln lr*, ln B*) for rows of `Axes.design`."""
        return design @ self.a, design @ self.b

    @property
    def open(self) -> bool:
        """Whether the bowl has no minimum: lr is known at each batch, but the batch runs off along the valley."""
        h11, h12, h22 = (float(x) for x in self.h)
        return self.has_batch and (h22 <= 0 or h12 * h12 >= CLOSED * h11 * h22)

    @property
    def turn(self) -> float:
        """u at which the cubic gives way to a straight line; infinite (signed as −skew) without skew."""
        if self.skew == 0.0:
            return -math.inf
        return -STRAIGHT * float(self.h[0]) / (6.0 * self.skew)

    def excess(self, u: Array, v: Array) -> Array:
        """ln L above the floor at distances u, v from the optimum in ln lr and ln B."""
        h11, h12, h22 = (float(x) for x in self.h)
        c, turn = self.skew, self.turn
        inside = np.maximum(u, turn) if turn < 0 else np.minimum(u, turn)
        along = 0.5 * h11 * inside**2 + c * inside**3
        along = along + (h11 * inside + 3.0 * c * inside**2) * (u - inside)
        out: Array = along + h12 * u * v + 0.5 * h22 * v * v
        return out

    def slopes(self, u: Array, v: Array) -> tuple[Array, Array]:
        """Derivatives of `excess` by u and v; the second is 0 where no batch optimum is identified."""
        h11, h12, h22 = (float(x) for x in self.h)
        inside = np.maximum(u, self.turn) if self.turn < 0 else np.minimum(u, self.turn)
        across = h11 * inside + h12 * v + 3.0 * self.skew * inside**2
        return np.asarray(across), np.asarray((h12 * u + h22 * v) * float(self.has_batch))

    def lr_given_batch(self, v: float) -> float:
        """Shift of ln lr* when the batch is off its optimum by v in ln B (the valley's direction)."""
        h11, h12 = float(self.h[0]), float(self.h[1])
        if not self.has_batch or h11 <= 0:
            return 0.0
        target = -h12 * v
        if self.skew == 0.0:
            return target / h11
        root = h11 * h11 + 12.0 * self.skew * target
        u = (math.sqrt(max(root, 0.0)) - h11) / (6.0 * self.skew)
        turn = self.turn
        return max(u, turn) if turn < 0 else min(u, turn)


@dataclass(frozen=True)
class CurvaturePrior:
    """Gaussian prior on the surface's linear part, and what is known of the noise before any run.

    Attributes:
        value: mean of (h₁₁, h₁₂, h₂₂, c), or of (h₁₁, c) where the batch is no part of the surface.
        precision: inverse covariance of the same.
        noise: standard deviation (ln loss) of a run about the surface.
        runs: how many runs' residuals `noise` is worth.
    """

    value: Array
    precision: Array
    noise: float
    runs: float


def margin_of(surface: Surface, variance: float) -> float:
    """Shift of ln lr from the likeliest optimum to the lr of least expected loss, bounded by ±0.4.

    A skewed bowl punishes one side more: to second order E[loss] is least at −3 c σ²/h₁₁ from its centre.

    Args:
        surface: the bowl.
        variance: σ², of ln lr* about the law's.
    """
    return min(max(-3.0 * surface.skew * variance / float(surface.h[0]), -0.4), 0.4)
