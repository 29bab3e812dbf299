"""Whether ln lr* bends in the logarithms of size and tokens, and what a bend would cost at a target.

A law is linear there, for predicting by a fitted bend is worse on real tables. But a bend that the trials show, carried
on to a target, says how wrong a straight line may be, in loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from metaopt_hpo.scaling.surface import Array, Surface

DECIDED = 1.0
"""Jackknife standard errors from which a bend's shift of ln lr* counts. A warning costs a pilot, silence a large run:
so two straight laws in three must pass, not nineteen in twenty."""


@dataclass(frozen=True)
class Bend:
    """A second fit, with curvature.

    Attributes:
        pairs: columns of the law's design whose products are further columns.
        point: coefficients of ln lr*, the law's own columns first.
        left_out: the same with one block of cells after the other left out, (blocks × coefficients).
    """

    pairs: tuple[tuple[int, int], ...]
    point: Array
    left_out: Array

    def row(self, design: Array) -> Array:
        """A row of the wider design from one of the law's."""
        return np.concatenate([design, [design[i] * design[j] for i, j in self.pairs]])

    def shift(self, surface: Surface, design: Array) -> tuple[float, float]:
        """(ln lr* of the bent fit less the straight one's, its standard error) at a row of the law's design."""
        row = self.row(design)
        groups = len(self.left_out)
        left = self.left_out @ row
        error = math.sqrt((groups - 1) / groups * float(((left - left.mean()) ** 2).sum()))
        return float(row @ self.point) - float(design @ surface.a), error

    def cost(self, surface: Surface, design: Array) -> float:
        """Loss (ln) that the straight line would lose if the trials' bend went on; 0 where it is not decided."""
        shift, error = self.shift(surface, design)
        if abs(shift) <= DECIDED * error:
            return 0.0
        return 0.5 * float(surface.h[0]) * shift * shift
