"""The estimand: exponents of the optimal lr over all (B, D) cells, and their gap to the bound, with a paired bootstrap.

Every level of every factor is resampled with the same cells and seeds, so that differences between levels are compared
run by run (their noise is common).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.attribution.levels import Criterion, Setting
from metaopt_hpo.attribution.stepping import GridResult
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling.estimates import Estimate
from metaopt_hpo.theory.intervals import interval
from metaopt_hpo.theory.minima import Minima, censored_fit, log_parabola
from metaopt_hpo.theory.predicted import predicted_exponents

Array = NDArray[np.float64]
BATCH_EXPONENTS = (0.0, 0.5, 0.571, 0.82)
"""b at which the gap is reported: fixed batch, the bound's own, Step Law's and von Rütte's."""
MAX_CENSORED = 0.2
"""Share of censored cells above which a level cannot carry a verdict."""


class AttributionError(MetaOptError):
    """An experiment that cannot answer: too few cells, levels missing, results that do not belong together."""


@dataclass(frozen=True)
class Resample:
    """One hierarchical bootstrap, shared by all levels: cells with replacement, then seeds within each drawn cell."""

    cells: NDArray[np.int64]
    """(1 + bootstrap, cells): row 0 is the data as they are."""
    seeds: Array
    """(1 + bootstrap, cells, seeds): how often each seed counts."""

    @classmethod
    def draw(cls, cells: int, seeds: int, *, bootstrap: int, seed: int) -> Resample:
        """A bootstrap of `bootstrap` resamples, at least 500.

        Raises:
            ValueError: fewer than 500 resamples.
        """
        if bootstrap < 500:
            raise ValueError(f"bootstrap must be at least 500, got {bootstrap!r}")
        rng = np.random.default_rng(seed)
        index = np.vstack([np.arange(cells), rng.integers(cells, size=(bootstrap, cells))])
        counts = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=(1 + bootstrap, cells)).astype(float)
        counts[0] = 1.0
        return cls(index, counts)


@dataclass(frozen=True)
class Plane:
    """ln η* = c + x·ln D + y·ln B for one level, with its bootstrap; NaN where nearly every cell is censored."""

    x: Estimate
    y: Estimate
    curvature: Estimate
    """Coefficient of (ln D − mean)²."""
    censored: float
    """Share of cells whose optimum lies beyond the lr grid."""
    loss_slope: Estimate
    """Exponent of the tuned criterion in D at fixed B: −α_D for a loss."""
    samples: Array
    """(1 + bootstrap, 2): (x, y), row 0 the estimate."""
    loss_samples: Array
    """(1 + bootstrap,) of `loss_slope`, on the same resamples."""

    @property
    def curved(self) -> bool:
        """Whether the curvature test rejects a single power of D."""
        return not self.curvature.low <= 0 <= self.curvature.high

    def joint(self, b: float) -> Estimate:
        """Exponent of lr in D along B ~ D^b."""
        return interval(*_split(self.samples @ np.array([1.0, b])))

    def gap(self, b: float) -> Estimate:
        """Joint exponent minus the bound's at fixed momentum."""
        return interval(*_split(self.gap_samples(b)))

    def gap_samples(self, b: float) -> Array:
        """(1 + bootstrap,) gaps, row 0 the estimate."""
        return np.asarray(self.samples @ np.array([1.0, b]) - predicted_exponents().along(b))


def fit_plane(
    result: GridResult, settings: Sequence[Setting], criterion: Criterion, resample: Resample
) -> Plane:
    """The plane of one level.

    Args:
        settings: one setting, or several whose lower envelope counts (tuned momentum).

    Raises:
        AttributionError: no more usable cells than unknowns, or all with one budget or one batch.
    """
    for name, values in (("token budget", result.tokens), ("batch", result.batch)):
        if len(np.unique(values)) < 2:
            raise AttributionError(f"the grid has a single {name}: its exponent needs at least two")
    if len(result.tokens) <= 4:
        raise AttributionError(
            f"{len(result.tokens)} cells are too few for 4 unknowns: run more (tokens, batch) cells"
        )
    return plane_through(optima(result, settings, criterion, resample), result, resample)


def optima(
    result: GridResult,
    settings: Sequence[Setting],
    criterion: Criterion,
    resample: Resample,
    *,
    every: int = 1,
) -> Minima:
    """Optimal ln lr of the cells of each resample, (1 + bootstrap, cells), in the order of `resample.cells`.

    Args:
        every: keep every n-th lr of the grid (the protocol's coarse grid).
    """
    log_lr = np.log(result.lr)[:, ::every]
    runs = result.of(settings, criterion)[:, ::every]
    if resample.cells.shape[1] != len(runs) or resample.seeds.shape[2] != runs.shape[2]:
        raise AttributionError("the bootstrap was drawn for another grid: draw it for these cells and seeds")
    # Diverged runs are infinite, and 0 · inf is no number: they are counted apart, and count only where drawn.
    finite = np.isfinite(runs)
    weight = resample.seeds[..., None]
    mean = (np.where(finite, runs, 0.0)[resample.cells] @ weight)[..., 0] / weight.sum(axis=-2)
    if not finite.all():
        mean[((~finite)[resample.cells] @ weight)[..., 0] > 0] = np.inf
    return log_parabola(log_lr[resample.cells], np.log(mean))


def plane_through(minima: Minima, result: GridResult, resample: Resample) -> Plane:
    """The plane through the optima of each resample; those beyond the grid count as intervals.

    Raises:
        AttributionError: no more usable cells than unknowns.
    """
    if minima.usable[0].sum() <= 3:
        raise AttributionError(
            "too few cells have a finite criterion to fit the plane: widen the lr grid downwards"
        )
    log_d, log_b = np.log(result.tokens), np.log(result.batch)
    design = np.column_stack([np.ones(len(log_d)), log_d, log_b])
    bent = np.column_stack([design, (log_d - log_d.mean()) ** 2])
    beta = censored_fit(design[resample.cells], minima.low, minima.high)
    curved = censored_fit(bent[resample.cells], minima.low, minima.high)
    depth = censored_fit(design[resample.cells], minima.value, minima.value)
    return Plane(
        x=interval(*_split(beta[:, 1])),
        y=interval(*_split(beta[:, 2])),
        curvature=interval(*_split(curved[:, 3])),
        censored=float(minima.censored[0].mean()),
        loss_slope=interval(*_split(depth[:, 1])),
        samples=beta[:, 1:3],
        loss_samples=depth[:, 1],
    )


def gradient_norm_rises(result: GridResult, setting: Setting) -> float:
    """Share of cells whose ‖g‖* ends higher than it began at the loss-optimal lr: above one half, avg-grad is unusable.

    There the bounded quantity is smallest for runs that hardly move, so that its "optimal" lr means nothing.
    """
    loss = result.of([setting], "final-loss").mean(axis=-1)
    best = np.argmin(loss, axis=1)
    growth = result.growth[:, result.settings.index(setting)].mean(axis=-1)
    return float((growth[np.arange(len(best)), best] > 1).mean())


def _split(samples: Array) -> tuple[float, Array]:
    return float(samples[0]), samples[1:]
