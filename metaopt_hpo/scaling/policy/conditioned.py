"""A law at one size and number of tokens, conditioned on the runs that have finished there.

How far the law is off at a target, in level, in place and in shape, its finished runs say better than the law can know
(`target_model`); a running one is then judged by both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from metaopt_hpo.scaling.forecast import CurveLike, with_curve
from metaopt_hpo.scaling.policy.target_model import (
    BELIEF,
    DOUBTED,
    LOSS_NOISE,
    TargetModel,
    considered,
)

if TYPE_CHECKING:
    from metaopt_hpo.scaling.law import Law

WEIGHED: tuple[str, ...] = ("unsure-optimum",)
"""Codes of the cautions that say by how much a law may be off. Under any other one its shape may be wrong: where a
shape changes, losses change too (`text-lm`, docs/studies/laws), and the law alone is not asked about a run."""

ENOUGH = 3
"""Finished runs from which a law is conditioned on them: a level, a slope and what is left over."""

CACHED = 10_000
"""Configurations remembered between two finished runs."""

Finished = tuple[float, float, float]
"""lr, batch and final loss of a run."""


@dataclass(frozen=True)
class Conditioned:
    """What the law and the finished runs of a size and number of tokens say together.

    Attributes:
        law: the law.
        model: the law conditioned on them.
        best: lowest loss of them.
    """

    law: Law
    model: TargetModel
    best: float
    _ends: dict[tuple[float, float], list[tuple[float, float, float, float]]] = field(
        default_factory=dict, repr=False
    )

    def ends(
        self, config: tuple[float, float, float, float], curve: CurveLike | None
    ) -> list[tuple[float, float, float]]:
        """(weight, mean, standard deviation) of the final ln loss of (size, tokens, lr, batch)."""
        size, tokens, lr, batch = config
        if (lr, batch) not in self._ends:
            if len(self._ends) > CACHED:
                self._ends.clear()
            place = self.law.at(size, tokens)
            self._ends[lr, batch] = self.model.ends((math.log(lr) - place.x, math.log(batch) - place.y))
        out = []
        for weight, mean, variance, noise in self._ends[lr, batch]:
            mean, variance = with_curve(self.law, config, curve, mean, variance)
            out.append((weight, mean, math.sqrt(variance + noise**2)))
        return out


def conditioned(law: Law, size: float, tokens: float, finished: Sequence[Finished]) -> Conditioned | None:
    """A law conditioned on finished runs of one size and number of tokens; None with fewer than `ENOUGH` of them."""
    sound = [f for f in finished if all(0 < v < math.inf for v in f)]
    if len(sound) < ENOUGH:
        return None
    values = np.log(np.array(sound))
    values = values[considered(values[:, 2])]
    place = law.at(size, tokens)
    variance = place.var_x
    if law.alternatives is not None:
        dx, _ = law.alternatives.distances(law.axes.design(*law.anchor(size, tokens)))
        variance = float((dx**2).mean())
    model = TargetModel(
        law.surface,
        values[:, :2] - np.array([place.x, place.y]),
        values[:, 2],
        math.sqrt(variance + law.scatter["lr_given_batch"] ** 2),
        max(law.noise, LOSS_NOISE),
        DOUBTED if any(d.code not in WEIGHED for d in place.doubts) else BELIEF,
    )
    try:
        model.ends((0.0, 0.0))
    except np.linalg.LinAlgError:  # losses beyond all bounds
        return None
    return Conditioned(law, model, math.exp(float(values[:, 2].min())))
