"""Search methods over (lr, batch) that ask and are told, for replay: no training, no store, nothing to resume.

A framework offers its samplers under the entry-point group `metaopt_hpo.searchers`: a factory
`(bounds, seed) → searcher`, where bounds map "lr" and "batch" to (low, high), both searched in the logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Protocol

import numpy as np

from metaopt_hpo.comparison.engine import EngineError

ENTRY_POINT_GROUP = "metaopt_hpo.searchers"

Bounds = Mapping[str, tuple[float, float]]
Point = tuple[float, float]
"""(lr, batch)."""


class Searcher(Protocol):
    """Proposes points one after the other."""

    def ask(self) -> Point:
        """The next (lr, batch) to try."""
        ...

    def tell(self, point: Point, loss: float) -> None:
        """What the point that was asked last, or was tried in its place, gave."""
        ...


SearcherFactory = Callable[[Bounds, int], Searcher]


class RandomSearcher:
    """Log-uniform points."""

    def __init__(self, bounds: Bounds, seed: int) -> None:
        self._bounds = bounds
        self._rng = np.random.default_rng(seed)

    def ask(self) -> Point:
        """The next (lr, batch) to try."""
        out = []
        for name in ("lr", "batch"):
            low, high = self._bounds[name]
            out.append(math.exp(self._rng.uniform(math.log(low), math.log(high))))
        return out[0], out[1]

    def tell(self, point: Point, loss: float) -> None:
        """Nothing is learned."""


def installed_searchers() -> dict[str, SearcherFactory]:
    """Searchers of installed packages, by name; those whose framework is missing are left out."""
    found: dict[str, SearcherFactory] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            found[entry.name] = entry.load()
        except ImportError:
            continue
    return found


def get_searcher(name: str) -> SearcherFactory:
    """The factory of that name.

    Raises:
        EngineError: nothing installed offers it.
    """
    if name == "random":
        return RandomSearcher
    found = installed_searchers()
    if name not in found:
        raise EngineError(
            f"no searcher {name!r} is installed; there are {', '.join(sorted({'random', *found}))} "
            "(pip install 'metaopt-hpo[optuna]' brings tpe and gp)"
        )
    return found[name]
