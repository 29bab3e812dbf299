"""A law at one size and number of tokens, conditioned on the runs that have finished there.

How far the law is off at a target, in level, in place and in shape, its finished runs say better than the law can know
(`target_model`); a running one is then judged by both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from metaopt_hpo.scaling.forecast import DRIFT, CurveLike, chance_below, last_point, points_of, with_curve
from metaopt_hpo.scaling.forms.surface import Array
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

WORTH = 2.0
"""Runs that the usual spread of how much runs still fall (`DRIFT`) is worth beside the finished runs' own."""


class Finished(NamedTuple):
    """A run that has finished: its curve says how its like fall, and may be missing."""

    lr: float
    batch: float
    loss: float
    curve: CurveLike | None = None


@dataclass(frozen=True)
class Conditioned:
    """What the law and the finished runs of a size and number of tokens say together.

    Attributes:
        law: the law.
        model: the law conditioned on them.
        best: lowest loss of them.
        falls: of each with a curve, ln tokens of its reports and how far ln loss still fell from there.
    """

    law: Law
    model: TargetModel
    best: float
    falls: tuple[tuple[Array, Array], ...] = ()
    _ends: dict[tuple[float, float], list[tuple[float, float, float, float, float]]] = field(
        default_factory=dict, repr=False
    )

    def chance(
        self, config: tuple[float, float, float, float], curve: CurveLike | None, incumbent: float | None
    ) -> tuple[float, float]:
        """(chance that (size, tokens, lr, batch) ends below the best, its expected ln loss).

        The best is the lowest *expected* loss of the finished runs: the lowest loss of noisy runs is that of a lucky
        one, and nothing may seem to have a chance against it. An incumbent below all of them counts as it is.
        """
        size, tokens, lr, batch = config
        if (lr, batch) not in self._ends:
            if len(self._ends) > CACHED:
                self._ends.clear()
            place = self.law.at(size, tokens)
            self._ends[lr, batch] = self.model.ends((math.log(lr) - place.x, math.log(batch) - place.y))
        given = incumbent is not None and incumbent < self.best
        beat = incumbent if incumbent is not None and given else self.best
        seen = None if curve is None else last_point(curve)
        fall = None if seen is None else self.fall(seen[0], tokens)
        p = expected = 0.0
        for weight, mean, variance, noise, lowest in self._ends[lr, batch]:
            mean, variance = with_curve(self.law, config, curve, mean, variance, fall)
            goal = beat if given else max(beat, math.exp(lowest))
            p += weight * chance_below(goal, mean, math.sqrt(variance + noise**2))
            expected += weight * mean
        return p, expected

    def fall(self, t: float, tokens: float) -> tuple[float, float] | None:
        """(mean, standard deviation) of how far ln loss still falls from `t` tokens on; None where few curves say."""
        x = math.log(t)
        known = [float(np.interp(x, at, fell)) for at, fell in self.falls if at[0] <= x <= at[-1]]
        if len(known) < ENOUGH:
            return None
        n, usual = len(known), DRIFT**2 * max(math.log(tokens / t), 0.0)
        variance = (float(np.var(known)) * n + WORTH * usual) / (n - 1 + WORTH)
        return float(np.mean(known)), math.sqrt(variance * (1.0 + 1.0 / n))


def conditioned(
    law: Law, size: float, tokens: float, finished: Iterable[Finished | tuple[float, float, float]]
) -> Conditioned | None:
    """A law conditioned on finished runs of one size and number of tokens; None with fewer than `ENOUGH` of them."""
    try:
        sound = [f for f in (Finished(*f) for f in finished) if all(0 < v < math.inf for v in f[:3])]
    except TypeError:
        raise ValueError("finished must hold lr, batch and final loss of each run, as numbers") from None
    sound.sort(key=lambda f: f[:3])  # the order in which they were heard of decides nothing
    if len(sound) < ENOUGH:
        return None
    values = np.log(np.array([f[:3] for f in sound]))
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
    curves = [(points_of(f.curve), math.log(f.loss)) for f in sound if f.curve is not None]
    falls = tuple((np.log(p[:, 0]), np.log(p[:, 1]) - end) for p, end in curves if len(p))
    return Conditioned(law, model, math.exp(float(values[:, 2].min())), falls)
