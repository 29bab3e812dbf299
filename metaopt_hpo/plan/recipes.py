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
            to: "transformers", "lightning", "torchtitan", "nanochat", "litgpt", "yaml", or "card" for Markdown.
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
