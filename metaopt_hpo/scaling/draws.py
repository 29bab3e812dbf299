"""Bootstrap draws of a law's parameters: what its intervals come from."""

from __future__ import annotations

from dataclasses import dataclass

from metaopt_hpo.scaling.forms.surface import Array


@dataclass(frozen=True)
class Draws:
    """Bootstrap draws of the surface's parameters, one row a draw."""

    a: Array
    b: Array
    slope: Array
    """d ln lr* / d ln B at a fixed size and tokens (the valley's direction), one value a draw."""
    floor: Array
    """ln loss at the optimum is not linear in the floor's parameters, so each draw keeps `Floor.parameters`."""
