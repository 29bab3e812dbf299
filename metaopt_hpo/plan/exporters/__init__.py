"""A recipe as the configuration of a tool that people train with: one file a tool, with an `EXPORTER`."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from importlib.metadata import entry_points

from metaopt_hpo.plan.costs import PlanError
from metaopt_hpo.plan.exporters.base import Exporter as Exporter
from metaopt_hpo.plan.exporters.base import Setup as Setup
from metaopt_hpo.plan.recipe import Recipe

ENTRY_POINT_GROUP = "metaopt_hpo.exporters"


def exporters() -> dict[str, Exporter]:
    """By name: each module of this folder that has an `EXPORTER`, then those of other distributions.

    An entry point whose distribution cannot be imported is left out, and one never takes the place of ours.
    """
    modules = (import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    found = [m.EXPORTER for m in modules if hasattr(m, "EXPORTER")]
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            found.append(entry.load())
        except ImportError:
            continue
    return {e.name: e for e in reversed(found)}


def export(recipe: Recipe, to: str, setup: Setup | None = None) -> str:
    """A recipe as text for a tool.

    Args:
        recipe: what to train.
        to: the name of one of `exporters()`.
        setup: sequence length and devices.

    Raises:
        PlanError: there is no such exporter.
    """
    found = exporters()
    if to not in found:
        offered = "; ".join(f"{name} ({found[name].writes})" for name in sorted(found))
        raise PlanError(f"there is no export to {to!r}; there are: {offered}")
    return found[to].export(recipe, setup or Setup())
