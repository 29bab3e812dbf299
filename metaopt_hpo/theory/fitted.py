"""Exponents fitted to trials: the plane of optimal lr over all (size, tokens, batch) cells, by bootstrap.

The plane is ln η* = c + x·ln D + y·ln B (+ z·ln N) over *all* cells; along a batch path B ~ D^b the lr then follows
D^(x + b·y). Fitting joint argmins only would answer another question, and an ill-conditioned one where the
bound has a ridge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling.estimates import Estimate
from metaopt_hpo.theory.intervals import interval
from metaopt_hpo.theory.minima import censored_fit, log_parabola
from metaopt_hpo.trials.table import TrialTable

Array = NDArray[np.float64]


class ExponentsRefused(MetaOptError):
    """There are too few trials for the fit; the message says what is missing."""


@dataclass(frozen=True)
class FittedExponents:
    """The fitted plane of optimal lr with bootstrap intervals.

    Examples:
        >>> from metaopt_hpo import TrialRecord, TrialTable
        >>> table = TrialTable.from_records(
        ...     TrialRecord(size=1e6, tokens=d, batch=b, lr=x, loss=3 + (x / (4e-3 * (1e4 * b / d) ** 0.5) - 1) ** 2)
        ...     for d in (1e9, 4e9, 1.6e10)
        ...     for b in (1e5, 4e5)
        ...     for x in (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
        ... )
        >>> from metaopt_hpo.theory import fit_exponents
        >>> fitted = fit_exponents(table, bootstrap=100)
        >>> fitted.cells
        6
    """

    x: Estimate
    y: Estimate
    size: Estimate | None
    """z of N^z; None where the trials have one size."""
    batch: Estimate | None
    """Exponent of the loss-optimal batch in D; None where the trials cannot tell."""
    curvature: Estimate
    """Coefficient of (ln D − mean)²: an interval without 0 says that no single power of D fits."""
    cells: int
    censored: float
    """Share of cells whose optimum lies beyond the grid."""
    samples: Array
    """Bootstrap samples of (x, y), shape (bootstrap, 2)."""

    def along(self, b: float) -> Estimate:
        """Exponent of lr in D along B ~ D^b."""
        return interval(self.x.value + b * self.y.value, self.samples[:, 0] + b * self.samples[:, 1])

    @property
    def curved(self) -> bool:
        """Whether the curvature test rejects a single power of D."""
        return not (self.curvature.low <= 0 <= self.curvature.high)


def fit_exponents(table: TrialTable, *, bootstrap: int = 500, seed: int = 0) -> FittedExponents:
    """Fit the plane of optimal lr to a trial table.

    Each (size, tokens, batch) cell gives one optimum (log-parabola over lr of the loss averaged over seeds); edge
    optima enter as intervals. The bootstrap resamples cells, and seeds within a cell where there are several.

    Args:
        bootstrap: number of resamples, at least 100; 500 keeps the interval's own noise near a tenth of its width.
        seed: of the resampling.

    Raises:
        ExponentsRefused: fewer cells than unknowns, or no spread in tokens or batch.
        ValueError: bootstrap below 100.

    Examples:
        >>> from metaopt_hpo import TrialRecord, TrialTable
        >>> table = TrialTable.from_records(
        ...     TrialRecord(size=1e6, tokens=d, batch=b, lr=x, loss=3 + (x / (4e-3 * (1e4 * b / d) ** 0.5) - 1) ** 2)
        ...     for d in (1e9, 4e9, 1.6e10)
        ...     for b in (1e5, 4e5)
        ...     for x in (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
        ... )
        >>> from metaopt_hpo.theory import fit_exponents
        >>> round(fit_exponents(table, bootstrap=100).y.value, 1)
        0.5
    """
    if bootstrap < 100:
        raise ValueError(f"bootstrap must be at least 100, got {bootstrap!r}")
    frame = table.frame
    # A diverged run is evidence that its lr is too large; other unfinished runs are evidence of nothing.
    diverged = (frame["state"] == "diverged").to_numpy()
    frame = frame[(frame["state"] == "complete").to_numpy() | diverged]
    keys, low, high, value = [], [], [], []
    generator = np.random.default_rng(seed)
    for key, cell in frame.groupby(["size", "tokens", "batch"], sort=True):
        loss = cell.pivot_table(index="lr", columns="seed", values="loss", aggfunc="mean", dropna=False)
        bad = cell.loc[cell["state"] == "diverged", "lr"].unique()
        grid = np.union1d(loss.index.to_numpy(dtype=float), bad)
        runs = loss.reindex(grid).to_numpy(dtype=float).copy()
        runs[np.isin(grid, bad)] = np.inf
        if len(grid) < 3:
            continue
        minima = log_parabola(np.log(grid), _resampled_means(runs, bootstrap, generator))
        keys.append(key)
        low.append(minima.low)
        high.append(minima.high)
        value.append(minima.value)
    if not keys:
        raise ExponentsRefused("no (size, tokens, batch) cell has 3 learning rates: run at least 3 a cell")
    return _fit_plane(
        np.log(np.array(keys, dtype=float)), np.array(low), np.array(high), np.array(value), generator
    )


def _fit_plane(
    keys: Array, low: Array, high: Array, value: Array, generator: np.random.Generator
) -> FittedExponents:
    """keys: ln (size, tokens, batch), one row a cell; the rest (cells, 1 + bootstrap), column 0 the estimate itself."""
    several = bool(np.ptp(keys[:, 0]) > 1e-6)
    columns = [np.ones(len(keys)), keys[:, 1], keys[:, 2]] + ([keys[:, 0]] if several else [])
    design = np.stack(columns, axis=1)
    unknowns = design.shape[1]
    for name, column in (("tokens", 1), ("batch", 2)):
        if np.ptp(keys[:, column]) < 1e-6:
            raise ExponentsRefused(f"all cells have the same {name}: its exponent needs at least two values")
    if (
        len(keys) <= unknowns
        or np.linalg.matrix_rank(design - design.mean(0) * (np.arange(unknowns) > 0)) < unknowns
    ):
        raise ExponentsRefused(
            f"{len(keys)} usable cells cannot separate {unknowns} unknowns: add cells that vary tokens at equal batch "
            "and batch at equal tokens" + (", at each size" if several else "")
        )
    weights = np.ones((low.shape[1], len(keys)))
    weights[1:] = generator.multinomial(len(keys), np.full(len(keys), 1 / len(keys)), size=low.shape[1] - 1)
    beta = censored_fit(design, low.T, high.T, weights)
    centred = keys[:, 1] - keys[:, 1].mean()
    bent = censored_fit(np.column_stack([design, centred**2]), low.T, high.T, weights)
    edge = (low[:, 0] != high[:, 0]).mean()
    return FittedExponents(
        x=interval(beta[0, 1], beta[1:, 1]),
        y=interval(beta[0, 2], beta[1:, 2]),
        size=interval(beta[0, 3], beta[1:, 3]) if several else None,
        batch=_best_batch(keys, value, weights),
        curvature=interval(bent[0, -1], bent[1:, -1]),
        cells=len(keys),
        censored=float(edge),
        samples=beta[1:, 1:3],
    )


def _best_batch(keys: Array, value: Array, weights: Array) -> Estimate | None:
    """Exponent of the batch with the lowest minimum, over (size, tokens) groups of at least 3 batches."""
    groups, index = np.unique(keys[:, :2].round(6), axis=0, return_inverse=True)
    several = bool(np.ptp(groups[:, 0]) > 1e-6)
    rows, low, high, share = [], [], [], []
    for g in range(len(groups)):
        mine = np.flatnonzero(index.ravel() == g)
        if len(mine) < 3:
            continue
        mine = mine[np.argsort(keys[mine, 2])]
        minima = log_parabola(keys[mine, 2], value[mine].T)
        rows.append([1.0, groups[g, 1], *([groups[g, 0]] if several else [])])
        low.append(minima.low)
        high.append(minima.high)
        share.append(weights[:, mine].sum(axis=1))
    design = np.array(rows)
    if len(rows) <= (3 if several else 2) or np.ptp(design[:, 1]) < 1e-6:
        return None
    interior = np.array(low)[:, 0] == np.array(high)[:, 0]
    if interior.sum() < design.shape[1]:
        return None
    beta = censored_fit(design, np.array(low).T, np.array(high).T, np.array(share).T)
    return interval(beta[0, 1], beta[1:, 1])


def _resampled_means(runs: Array, bootstrap: int, generator: np.random.Generator) -> Array:
    """ln mean loss by lr: row 0 as observed, then resamples over seeds; shape (1 + bootstrap, lrs)."""
    seeds = runs.shape[1]
    weights = np.ones((1 + bootstrap, seeds))
    if seeds > 1:
        weights[1:] = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=bootstrap)
    known = np.isfinite(runs) | np.isinf(runs)
    present = weights @ known.T
    with np.errstate(invalid="ignore", divide="ignore"):
        finite = weights @ np.where(np.isfinite(runs), runs, 0.0).T / present
        blown = weights @ np.isinf(runs).T.astype(float) > 0
        return np.asarray(np.where(blown | (present == 0), np.inf, np.log(finite)))
