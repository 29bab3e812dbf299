"""Strength borrowed from other people's runs: a hierarchical prior on where the optimum lies and how it moves.

Tables of one kind of model share the shape of their loss surface and nearly share exponents, while their optimal
learning rates differ by a factor (the optimizer's details, the data, the tokenizer). So a table's
parameters are taken to be drawn from a population: exponents scatter about its mean by `BETWEEN`, intercepts by
`INTERCEPT`, the curvature by `CURVATURE_SCALE` as a whole and by `CURVATURE_SHAPE` in its shape. A `Base` is that
population's mean, from one table or several; a fit of few pilots starts from it and leaves it as the pilots say
otherwise. This is the first level of a two-level Gaussian model whose hyperparameters are fixed, not estimated: two or
three tables cannot tell a variance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metaopt_hpo.scaling.forms.floor import PRIOR, Floor
from metaopt_hpo.scaling.forms.surface import Array, CurvaturePrior

AXES = ("size", "tokens")

BETWEEN = {"lr": {"size": 0.2, "tokens": 0.15}, "batch": {"size": 0.15, "tokens": 0.12}}
"""Standard deviation of one table's exponents about another's. Published exponents of the optimal lr of one kind of
model (decoder-only language models, AdamW, decaying schedule) spread like this: −0.23 to −0.71 in size."""

INTERCEPT = {"lr": 1.0, "batch": 0.7}
"""Standard deviation, ln units, of one table's optimum about another's at equal size and tokens: a factor of 2.7 in lr,
of 2 in batch."""

ALIKE = math.log(1e3)
"""Distance in ln size and ln tokens together at which another centre makes a table √2 times less alike."""

CURVATURE_SCALE = 0.7
"""Standard deviation of the curvature's common factor, relative: tables measured so far span a factor of 3."""

CURVATURE_SHAPE = 0.35
"""Relative standard deviation of each coefficient beside that factor."""

USUAL_NOISE = 2e-3
"""Standard deviation (ln loss) of one run about a fitted surface, where a base promises less: its runs may have been
averaged, or its schedule quieter."""

NOISE_RUNS = 4.0
"""Runs' residuals that the noise known beforehand is worth."""

FLOOR_SPREAD = {"level": 0.5, "share": 0.5, "exponent": 0.3, "power": 0.5}
"""Standard deviation of the logarithm of a table's floor parameters about another's (names as in `floor.PRIOR`)."""

ODD_CURVATURE = (0.5, 0.15)
"""Least size of h₁₂ and c, relative to h₁₁, whose deviation is `CURVATURE_SHAPE` of it: both may be zero in a base."""


@dataclass(frozen=True)
class Base:
    """Mean of a population of tables.

    Attributes:
        centre: (ln size, ln tokens) at which the intercepts are read; NaN along an axis that no table varied.
        lr, batch: (intercept, exponent in size, exponent in tokens) of ln lr* and ln batch*; exponents are NaN where
            unknown, the whole of `batch` where no table varied it.
        curvature: (h₁₁, h₁₂, h₂₂, c) of the surface in ln lr and ln batch; NaN for what only a batch shows.
        noise: standard deviation (ln loss) of a run about its surface.
        tables: how many tables it comes from.
        floors: the loss floors of those whose size and tokens both varied.
    """

    centre: Array
    lr: Array
    batch: Array
    curvature: Array
    noise: float
    tables: int = 1
    floors: tuple[Floor, ...] = ()
    slopes: Array | None = None
    """Standard deviations of the exponents, (lr, batch) × (size, tokens), where they are believed better than those of
    like tables: a prior law's own; None where `BETWEEN` holds, NaN for an exponent of which it does."""

    def unlikeness(self, centre: Array) -> float:
        """Factor on all spreads for trials about another centre: 1 nearby, growing as they lie decades away."""
        away = np.where(np.isfinite(self.centre), centre - self.centre, 0.0)
        return math.hypot(1.0, float(np.abs(away).sum()) / ALIKE)

    @property
    def has_batch(self) -> bool:
        """Whether it knows an optimal batch."""
        return bool(np.isfinite(self.batch[0]))

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes along which it knows an exponent of lr."""
        return tuple(n for n, v in zip(AXES, self.lr[1:], strict=True) if math.isfinite(v))

    def at(self, what: str, centre: Array) -> tuple[Array, Array]:
        """(mean, standard deviation) of (intercept, exponents) of ln lr* or ln batch* at another centre.

        The further from the base's own centre, the wider: exponents that scatter between tables move the intercept,
        and models decades smaller are less alike.

        Args:
            what: "lr" or "batch".
            centre: (ln size, ln tokens).
        """
        values = self.lr if what == "lr" else self.batch
        spread = math.sqrt((1.0 + 1.0 / self.tables) / 2.0) * self.unlikeness(centre)
        slopes = np.array([BETWEEN[what][n] for n in AXES]) * spread
        if self.slopes is not None:
            own = self.slopes[0 if what == "lr" else 1]
            slopes = np.where(np.isfinite(own), own, slopes)
        away = np.where(np.isfinite(self.centre) & np.isfinite(values[1:]), centre - self.centre, 0.0)
        mean = values.copy()
        mean[0] = values[0] + float(np.nan_to_num(values[1:]) @ away)
        first = math.hypot(INTERCEPT[what] * spread, *(slopes * away))
        return mean, np.concatenate([[first], slopes])

    def curvature_prior(self, centre: Array, *, batch: bool) -> CurvaturePrior | None:
        """Prior on the surface's linear coefficients; None where the base has no batch and the fit has one.

        Args:
            centre: (ln size, ln tokens) of the trials; models decades smaller are less alike in this too.
            batch: whether the fit has one.
        """
        if batch and not self.has_batch:
            return None
        h = self.curvature if batch else self.curvature[[0, 3]]
        floor = np.array([0.0, *ODD_CURVATURE[:1], 0.0, *ODD_CURVATURE[1:]])[
            [0, 1, 2, 3] if batch else [0, 3]
        ]
        shape = CURVATURE_SHAPE * np.maximum(np.abs(h), floor * float(h[0]))
        scale = CURVATURE_SCALE * self.unlikeness(centre)
        covariance = scale**2 * np.outer(h, h) + np.diag(shape**2)
        noise = max(self.noise, USUAL_NOISE)
        return CurvaturePrior(h, np.asarray(np.linalg.inv(covariance), dtype=np.float64), noise, NOISE_RUNS)

    def floor_prior(self, log_size: float, log_tokens: float) -> dict[str, tuple[float, float]]:
        """Prior on a floor about (ln size, ln tokens), in the names of `floor.PRIOR`, which stands in for none."""
        if not self.floors:
            return PRIOR
        rows = np.array([_floor_shape(f, log_size, log_tokens) for f in self.floors])
        level, share_n, share_d, exponent_n, exponent_d, power = (float(v) for v in rows.mean(axis=0))
        widen = math.sqrt((1.0 + 1.0 / len(self.floors)) / 2.0)
        widen *= self.unlikeness(np.array([log_size, log_tokens]))
        sd = {k: v * widen for k, v in FLOOR_SPREAD.items()}
        return {
            **PRIOR,
            "level": (level, sd["level"]),
            "share:size": (share_n, sd["share"]),
            "share:tokens": (share_d, sd["share"]),
            "exponent:size": (exponent_n, sd["exponent"]),
            "exponent:tokens": (exponent_d, sd["exponent"]),
            "power": (power, sd["power"]),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, NaN as None, for a law's file."""

        def plain(values: Array) -> list[float | None]:
            return [float(v) if math.isfinite(v) else None for v in values]

        arrays = {k: plain(getattr(self, k)) for k in ("centre", "lr", "batch", "curvature")}
        floors = [[*map(float, f.centre), *map(float, f.parameters())] for f in self.floors]
        own = {} if self.slopes is None else {"slopes": [plain(row) for row in self.slopes]}
        return {**arrays, "noise": self.noise, "tables": self.tables, "floors": floors, **own}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Base:
        """From `to_dict`."""

        def read(values: Sequence[float | None]) -> Array:
            return np.array([math.nan if v is None else float(v) for v in values])

        arrays = {k: read(data[k]) for k in ("centre", "lr", "batch", "curvature")}
        floors = tuple(
            Floor(AXES, np.array(f[:2]), f[2], np.array(f[3:5]), np.array(f[5:7]), USUAL_NOISE, f[7])
            for f in data["floors"]
        )
        own = data.get("slopes")
        slopes = None if own is None else np.array([read(row) for row in own])
        return cls(
            **arrays, noise=float(data["noise"]), tables=int(data["tables"]), floors=floors, slopes=slopes
        )


def mean_of(parts: Sequence[Base]) -> Base:
    """The population's mean: every table counts once, however many runs it holds."""
    if len(parts) == 1:
        return parts[0]
    with np.errstate(invalid="ignore"):
        centre = _known_mean(np.array([p.centre for p in parts]))
        lr = _known_mean(np.array([p.at("lr", centre)[0] for p in parts]))
        batch = _known_mean(np.array([p.at("batch", centre)[0] for p in parts]))
        level = np.exp(_known_mean(np.log([[p.curvature[0]] for p in parts])))
        shape = _known_mean(np.array([p.curvature / p.curvature[0] for p in parts]))
    noise = math.exp(float(np.mean(np.log([p.noise for p in parts]))))
    floors = tuple(f for p in parts for f in p.floors)
    return Base(centre, lr, batch, level * shape, noise, sum(p.tables for p in parts), floors)


def _known_mean(rows: Array) -> Array:
    """Mean over rows of what each knows; NaN where none does."""
    known = np.isfinite(rows)
    count = known.sum(axis=0)
    total = np.where(known, rows, 0.0).sum(axis=0)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), math.nan))


def _floor_shape(floor: Floor, log_size: float, log_tokens: float) -> list[float]:
    """Logarithms of (E, both terms, both effective exponents, γ), the first three relative to the loss there."""
    loss = float(floor.log_loss(math.exp(log_size), math.exp(log_tokens)))
    away = np.array([log_size, log_tokens]) - floor.centre
    terms = floor.power * (np.log(floor.coefficient) - floor.exponent * away)
    level = math.log(max(floor.level, 1e-12)) - loss
    return [level, *(terms - loss), *np.log(floor.exponent * floor.power), math.log(floor.power)]
