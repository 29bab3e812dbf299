"""A recipe with its conveniences: read, write, export, show."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from metaopt_hpo.atomic import write_text
from metaopt_hpo.plan import recipe as recipes
from metaopt_hpo.plan import show_recipe, toml


@dataclass(frozen=True, kw_only=True)
class Recipe(recipes.Recipe):
    """How to train the target, what to expect, and what that rests on. `Plan.recipe` makes one.

    Its data are those of `plan.recipe.Recipe`.

    Examples:
        >>> from metaopt_hpo import Recipe
        >>> from metaopt_hpo.plan.costs import Cost
        >>> from metaopt_hpo.plan.model import Target
        >>> from metaopt_hpo.plan.recipe import Basis, Range
        >>> recipe = Recipe(
        ...     target=Target(size=1e9, tokens=2e10), lr=Range(value=2e-3, low=1e-3, high=4e-3),
        ...     batch=Range(value=5e5, low=3e5, high=8e5), weight_decay=Range(value=0.1, low=0.05, high=0.2),
        ...     warmup=2e8, cooldown=4e9, loss=Range(value=2.3, low=2.2, high=2.4), within=2.0, cost=Cost(flops=1.2e20),
        ...     basis=Basis(runs=40, size=1e8, tokens=2e9, ln_size=2.3, ln_tokens=2.3),
        ... )
        >>> recipe.steps, recipe.warmup_steps
        (40000, 400)
    """

    @classmethod
    def of(cls, data: recipes.Recipe) -> Self:
        """A recipe with its conveniences, from its data."""
        return cls(**{f.name: getattr(data, f.name) for f in fields(data)})

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a recipe that `write` wrote.

        Raises:
            PlanError: there is none, or an edit does not fit; the message names line and field.
        """
        return cls.of(toml.read(recipes.Recipe, path))

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the recipe as TOML, whole or not at all."""
        to = Path(path)
        write_text(to, toml.to_toml(self, head="metaopt-hpo recipe"))
        return to

    def export(self, to: str, *, sequence_length: int = 2048, devices: int = 1, per_device: int = 8) -> str:
        """The recipe as a tool's configuration.

        Args:
            to: the name of one of `plan.exporters.exporters()`: "transformers", "torchtitan", "card" …
            sequence_length: tokens of a sequence.
            devices: that train together.
            per_device: sequences that a device takes at once; the batch is made up by accumulation.

        Raises:
            PlanError: there is no such export.
        """
        from metaopt_hpo.plan.exporters import Setup, export

        setup = Setup(sequence_length=sequence_length, devices=devices, per_device=per_device)
        return export(self, to, setup)

    def __str__(self) -> str:
        return show_recipe.text(self)

    def _repr_html_(self) -> str:
        return show_recipe.html(self)
