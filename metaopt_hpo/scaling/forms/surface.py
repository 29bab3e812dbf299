"""The loss surface over size, tokens, batch and lr: a bowl in (ln lr, ln batch) whose bottom moves as a power law.

    ln L = F(N, D) + ½ h₁₁ u² + h₁₂ u v + ½ h₂₂ v² + c u³,   u = ln lr − ln lr*,  v = ln B − ln B*
    ln lr* = a₀ + a·t,   ln B* = b₀ + b·t,   t = (ln N/N₀, ln D/D₀, …)

The bowl's form is one of `scaling.forms.bowl`, the floor F one of `scaling.forms.floor`. Working in ln L makes all
but the floor's scale independent of the loss's unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from metaopt_hpo.scaling.forms.axes import Array as Array
from metaopt_hpo.scaling.forms.bowl import Bowl, bowl_of

CLOSED = 0.98
"""h₁₂² over h₁₁h₂₂ from which a bowl counts as open: its minimum would lie seven half-widths along the valley."""

CELL_SCATTER = 0.15
"""Standard deviation, ln units, of a cell's true optimum about the law."""

RUN_ERROR = 0.4
"""Error of an optimum located by two runs, ln units; falls as 1/√(runs − 1)."""


@dataclass(frozen=True)
class Surface:
    """A fitted bowl and where its optimum lies.

    Attributes:
        a: (1 + axes) intercept and slopes of ln lr*.
        b: the same of ln B*, or of the batch the table used where it was not varied.
        h: (h₁₁, h₁₂, h₂₂).
        skew: c; 0 in a form without one.
        has_batch: whether a batch optimum is identified.
        further: coefficients of a form that has more of them.
        form: name of the bowl's form.
    """

    a: Array
    b: Array
    h: Array
    skew: float
    has_batch: bool
    further: tuple[float, ...] = ()
    form: str = "cubic"

    @classmethod
    def of(cls, a: Array, b: Array, coefficients: Array, bowl: Bowl, *, has_batch: bool) -> Surface:
        """From all coefficients of a form, in its order."""
        rest = [float(x) for x in coefficients[3:]]
        return cls(
            a,
            b,
            coefficients[:3],
            rest[0] if rest else 0.0,
            has_batch,
            further=tuple(rest[1:]),
            form=bowl.name,
        )

    @property
    def bowl(self) -> Bowl:
        """The form."""
        return bowl_of(self.form)

    @cached_property
    def coefficients(self) -> Array:
        """All coefficients of the form, in its order."""
        return np.array([*self.h, self.skew, *self.further], dtype=float)[: len(self.bowl.names)]

    def centre(self, design: Array) -> tuple[Array, Array]:
        """(ln lr*, ln B*) for rows of `Axes.design`."""
        return design @ self.a, design @ self.b

    @property
    def open(self) -> bool:
        """Whether the bowl has no minimum: lr is known at each batch, but the batch runs off along the valley."""
        h11, h12, h22 = (float(x) for x in self.h)
        return self.has_batch and (h22 <= 0 or h12 * h12 >= CLOSED * h11 * h22)

    def excess(self, u: Array, v: Array) -> Array:
        """ln L above the floor at distances u, v from the optimum in ln lr and ln B."""
        return self.bowl.excess(self.coefficients, u, v)

    def slopes(self, u: Array, v: Array) -> tuple[Array, Array]:
        """Derivatives of `excess` by u and v; the second is 0 where no batch optimum is identified."""
        across, along = self.bowl.gradient(self.coefficients, u, v)
        return across, np.asarray(along * float(self.has_batch))

    def lr_given_batch(self, v: float) -> float:
        """Shift of ln lr* when the batch is off its optimum by v in ln B (the valley's direction)."""
        return self.bowl.lr_given_batch(self.coefficients, v) if self.has_batch else 0.0

    def margin(self, variance: float) -> float:
        """Shift of ln lr from the likeliest optimum to the lr of least expected loss, bounded by ±0.4.

        Args:
            variance: of ln lr* about the law's.
        """
        return self.bowl.margin(self.coefficients, variance)


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
