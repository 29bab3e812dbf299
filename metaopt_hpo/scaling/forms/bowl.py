"""How ln loss rises about the optimum: a form is linear in its coefficients, so that a fit solves for them exactly.

Every form begins with the quadratic ½ h₁₁ u² + h₁₂ u v + ½ h₂₂ v² in u = ln lr − ln lr*, v = ln B − ln B*; forms differ
in their further terms, which vanish with their first and second derivatives at the optimum. A new form is a subclass
with `name`, `further`, `terms` and `slopes`; a fit takes it by its name: `fit(table, bowl="cubic")`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.scaling.forms.registry import named

Array = NDArray[np.float64]

FARTHEST = 0.4
"""Bound, ln units, on the shift from the likeliest optimum to the lr of least expected loss."""

STRAIGHT = 0.8
"""The cubic gives way to a straight line at this part of the way to its inflection."""

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
"""Gauss–Hermite rule for expectations over a normal distance."""


class Bowl(ABC):
    """A form of the loss above its floor.

    Attributes:
        name: what a fit and a law's file call it.
        further: (name, prior standard deviation about 0 as a multiple of h₁₁) of each coefficient after h₁₁, h₁₂, h₂₂.
        along_lr: which coefficients a table of one batch sees, those of terms in u alone.
    """

    name: ClassVar[str]
    further: ClassVar[tuple[tuple[str, float], ...]] = ()
    along_lr: ClassVar[tuple[int, ...]] = (0,)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        BOWLS[cls.name] = cls()

    @property
    def names(self) -> tuple[str, ...]:
        """Of all coefficients."""
        return ("h11", "h12", "h22", *(n for n, _ in self.further))

    @abstractmethod
    def terms(self, u: Array, v: Array) -> Array:
        """(coefficients × runs): what each coefficient is multiplied by."""

    @abstractmethod
    def slopes(self, h: Array, u: Array, v: Array) -> tuple[Array, Array]:
        """Derivatives of `h @ terms(u, v)` by u and by v."""

    # What follows has a default for every form; a form overrides it where it knows better.

    def excess(self, h: Array, u: Array, v: Array) -> Array:
        """ln L above the floor; unlike `h @ terms`, it may go on differently where the polynomial turns down."""
        return np.asarray(np.tensordot(h, self.terms(u, v), axes=1))

    def gradient(self, h: Array, u: Array, v: Array) -> tuple[Array, Array]:
        """Derivatives of `excess` by u and v."""
        return self.slopes(h, u, v)

    def point(self, h: Sequence[float], u: float, v: float) -> tuple[float, float, float]:
        """(excess, its derivatives by u and v) in plain floats, for verdicts of microseconds."""
        c, at, off = np.asarray(h), np.array(u), np.array(v)
        slope, across = self.gradient(c, at, off)
        return float(self.excess(c, at, off)), float(slope), float(across)

    def lr_given_batch(self, h: Array, v: float) -> float:
        """u of least loss where the batch is off its optimum by v: Newton's steps on the slope."""
        h11 = float(h[0])
        if h11 <= 0:
            return 0.0
        u, off = -float(h[1]) * v / h11, np.array(v)
        for _ in range(20):
            slope = float(self.gradient(h, np.array(u), off)[0])
            u -= min(max(slope / h11, -1.0), 1.0)
        return u

    def margin(self, h: Array, variance: float) -> float:
        """Shift of ln lr from the likeliest optimum to the lr of least expected loss, where the optimum scatters so."""
        shifts = np.linspace(-FARTHEST, FARTHEST, 161)
        u = shifts[:, None] + math.sqrt(variance) * NODES
        loss = self.excess(h, u, np.zeros_like(u)) @ WEIGHTS
        return float(shifts[int(np.argmin(loss))])


BOWLS: dict[str, Bowl] = {}
"""Forms by name; a subclass of `Bowl` is added where it is defined."""


class Cubic(Bowl):
    """A quadratic with c u³, so that too large an lr hurts more; past its inflection it goes on as a straight line."""

    name = "cubic"
    further = (("c", 0.5),)
    along_lr = (0, 3)

    def terms(self, u: Array, v: Array) -> Array:
        square = u * u
        return np.stack([0.5 * square, u * v, 0.5 * v * v, square * u])

    def slopes(self, h: Array, u: Array, v: Array) -> tuple[Array, Array]:
        return h[0] * u + h[1] * v + 3.0 * h[3] * (u * u), h[1] * u + h[2] * v

    @staticmethod
    def turn(h: Sequence[float] | Array) -> float:
        """u at which the cubic gives way to a straight line; infinite (signed as −c) without c."""
        c = float(h[3])
        return -math.inf if c == 0.0 else -STRAIGHT * float(h[0]) / (6.0 * c)

    def _inside(self, h: Array, u: Array) -> Array:
        turn = self.turn(h)
        return np.asarray(np.maximum(u, turn) if turn < 0 else np.minimum(u, turn))

    def excess(self, h: Array, u: Array, v: Array) -> Array:
        h11, h12, h22, c = (float(x) for x in h[:4])
        inside = self._inside(h, u)
        along = 0.5 * h11 * inside**2 + c * inside**3
        along = along + (h11 * inside + 3.0 * c * inside**2) * (u - inside)
        return np.asarray(along + h12 * u * v + 0.5 * h22 * v * v)

    def gradient(self, h: Array, u: Array, v: Array) -> tuple[Array, Array]:
        h11, h12, h22, c = (float(x) for x in h[:4])
        inside = self._inside(h, u)
        return np.asarray(h11 * inside + h12 * v + 3.0 * c * inside**2), np.asarray(h12 * u + h22 * v)

    def point(self, h: Sequence[float], u: float, v: float) -> tuple[float, float, float]:
        h11, h12, h22, c = h
        inside = u
        if c:
            turn = -STRAIGHT * h11 / (6.0 * c)
            inside = max(u, turn) if turn < 0 else min(u, turn)
        slope = h11 * inside + 3.0 * c * inside * inside
        along = (0.5 * h11 + c * inside) * inside * inside + slope * (u - inside)
        return along + h12 * u * v + 0.5 * h22 * v * v, slope + h12 * v, h12 * u + h22 * v

    def lr_given_batch(self, h: Array, v: float) -> float:
        h11, h12, c = float(h[0]), float(h[1]), float(h[3])
        if h11 <= 0:
            return 0.0
        target = -h12 * v
        if c == 0.0:
            return target / h11
        root = h11 * h11 + 12.0 * c * target
        u = (math.sqrt(max(root, 0.0)) - h11) / (6.0 * c)
        turn = self.turn(h)
        return max(u, turn) if turn < 0 else min(u, turn)

    def margin(self, h: Array, variance: float) -> float:
        # to second order E[loss] is least at −3 c σ²/h₁₁ from the centre
        return min(max(-3.0 * float(h[3]) * variance / float(h[0]), -FARTHEST), FARTHEST)


CUBIC = BOWLS["cubic"]
"""The form of every law that does not ask for another."""


def bowl_of(name: str) -> Bowl:
    """The form of this name; see `registry.named`."""
    return named(BOWLS, name, "the quadratic in ln lr")
