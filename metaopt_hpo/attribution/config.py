"""What to run on one world: cells, seeds, factors and levels, in one format from quadratics to a cluster."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from metaopt_hpo.attribution.estimand import AttributionError
from metaopt_hpo.attribution.levels import IDEAL, Noise, Setting, factorial, single_changes

REVISION = 2
"""Of the simulation: raised when the same configuration and seeds give other numbers, so that none are mixed."""


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """What to run on one world.

    Args:
        tokens, batch: budgets D (>= 5 over >= 1.5 decades) and batches B (>= 4); the grid is their product.
        seeds: >= 3; start, noise and minibatches are functions of them.
        factors: simulated factors of the full factorial; the criterion comes for free.
        method: "shapley" runs all combinations of the factors; "pairs" only single changes, pairs and all at once, for
            worlds where runs are expensive.
        levels: whether the levels outside the factorial are run too, one at a time.
        b: batch exponent of the decomposition; 0.571 is Step Law's, where the published gap is largest.
        bootstrap: >= 500.
        piece: cells per stored piece, longest first, so that expensive worlds resume in slices; 0 runs a grid at once.
        device: torch device of the grid.
    """

    tokens: tuple[int, ...] = tuple(2**i for i in range(11, 17))
    batch: tuple[int, ...] = tuple(2**i for i in range(2, 7))
    seeds: tuple[int, ...] = tuple(range(8))
    factors: tuple[str, ...] = ("schedule", "init", "noise", "warmup")
    method: Literal["shapley", "pairs"] = "shapley"
    levels: bool = True
    base_noise: Noise = "gaussian"
    """The ideal level of noise; "minibatch" on worlds that cannot produce Gaussian noise."""
    b: float = 0.571
    bootstrap: int = 500
    seed: int = 0
    """Of the bootstrap."""
    piece: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if len(self.tokens) < 5 or max(self.tokens) / min(self.tokens) < 10**1.5:
            raise ValueError(f"tokens must hold at least 5 budgets over 1.5 decades, got {self.tokens!r}")
        if len(set(self.batch)) < 4:
            raise ValueError(f"batch must hold at least 4 values, got {self.batch!r}")
        if max(self.batch) > min(self.tokens):
            raise ValueError(
                f"batch {max(self.batch)} exceeds the smallest budget of {min(self.tokens)} tokens"
            )
        if len(set(self.seeds)) < 3:
            raise ValueError(f"seeds must hold at least 3 values, got {self.seeds!r}")
        unknown = [f for f in self.factors if f not in ("schedule", "init", "noise", "warmup")]
        if unknown:
            raise ValueError(f"factors may be schedule, init, noise and warmup, got {unknown[0]!r}")
        if self.method not in ("shapley", "pairs"):
            raise ValueError(f"method must be shapley or pairs, got {self.method!r}")
        if self.bootstrap < 500:
            raise ValueError(f"bootstrap must be at least 500, got {self.bootstrap!r}")

    @property
    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, batch) of every cell."""
        d, b = np.meshgrid(self.tokens, self.batch, indexing="ij")
        return d.ravel().astype(float), b.ravel().astype(float)

    def pieces(self) -> list[np.ndarray]:
        """Indices of the cells of each piece."""
        d, b = self.cells
        order = np.argsort(-d / b, kind="stable")
        size = self.piece or len(order)
        return (
            [order[i : i + size] for i in range(0, len(order), size)]
            if self.piece
            else [np.arange(len(order))]
        )

    def settings(self, noises: Sequence[Noise]) -> dict[Noise, list[Setting]]:
        """Settings to run at each noise level of a world."""
        ideal = replace(IDEAL, noise=self.base_noise)
        cube = [
            replace(s, noise=self.base_noise if s.noise == "gaussian" else s.noise) for s in self._corners()
        ]
        out: dict[Noise, list[Setting]] = {}
        for s in dict.fromkeys([*cube, ideal]):
            out.setdefault(s.noise, []).append(s)
        if self.levels:
            out[self.base_noise] += [
                s for s in single_changes(self.base_noise) if s not in out[self.base_noise]
            ]
            for noise in noises:
                out.setdefault(noise, [replace(IDEAL, noise=noise)])
        missing = [n for n in out if n not in noises]
        if missing:
            raise AttributionError(
                f"the world cannot produce {missing[0]} noise: leave 'noise' out of factors"
            )
        return out

    def _corners(self) -> list[Setting]:
        """Combinations of ideal and practice levels that the decomposition needs."""
        cube = factorial(self.factors)
        if self.method == "shapley":
            return cube
        changed = [sum(getattr(s, f) != getattr(IDEAL, f) for f in self.factors) for s in cube]
        return [s for s, n in zip(cube, changed, strict=True) if n <= 2 or n == len(self.factors)]

    def fingerprint(self, world: str, noise: str, settings: Sequence[Setting]) -> str:
        """Identifies a grid: stored results of another config are never mixed in."""
        labels = [s.label for s in settings]
        parts = [REVISION, world, noise, self.tokens, self.batch, self.seeds, self.piece, labels]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
