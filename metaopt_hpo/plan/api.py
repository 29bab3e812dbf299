"""A plan with its conveniences: read, write, run, recipe."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from metaopt_hpo.plan import model, toml


@dataclass(frozen=True, kw_only=True)
class Plan(model.Plan):
    """From a target and a budget to a list of small runs, and from those to a recipe. Make one with `plan`.

    Its data are those of `plan.model.Plan`.
    """

    @classmethod
    def of(cls, data: model.Plan) -> Self:
        """A plan with its conveniences, from its data."""
        return cls(**{f.name: getattr(data, f.name) for f in fields(data)})

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read plan.toml.

        Raises:
            PlanError: there is none, or an edit does not fit; the message names line and field.
        """
        return cls.of(toml.read(model.Plan, path))

    @classmethod
    def from_toml(cls, text: str, *, source: str = "plan.toml") -> Self:
        """From TOML text; `source` is what messages call it."""
        return cls.of(toml.from_toml(model.Plan, text, source=source))

    def to_toml(self) -> str:
        """As TOML, units in comments."""
        return toml.to_toml(self, head=toml.HEAD.format(name="plan.toml"))

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write plan.toml, whole or not at all.

        Raises:
            WriteError: the file cannot be written; one that was there is unchanged.
        """
        return toml.write(self, path)
