"""Exponents of the optimal lr, momentum and batch: predicted by a bound, fitted to trials, and published.

The estimand is the plane ln η* = c + x·ln D + y·ln B (+ z·ln N) over *all* (B, D) cells; along a batch path B ~ D^b
the lr then follows D^(x + b·y). Fitting joint argmins only would answer another question, and an ill-conditioned one
where the bound has a ridge. Predicted exponents are those of arXiv 2603.15958's bound, derived again in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling import library
from metaopt_hpo.scaling.estimates import Estimate
from metaopt_hpo.theory.bounds import Kind, LMOBound
from metaopt_hpo.theory.minima import censored_fit, log_parabola
from metaopt_hpo.trials.table import TrialTable

Array = NDArray[np.float64]
Momentum = Literal["fixed", "tuned", "proportional"]
LEVEL = 0.95
"""Level of every interval here."""


class ExponentsRefused(MetaOptError):
    """The trials cannot bear the fit; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class PredictedExponents:
    """η* ~ D^x · B^y in one regime of a bound, and the loss-optimal batch and momentum there (derived)."""

    x: float
    y: float
    batch: float | None
    """Exponent of the optimal batch in D; None where the bound leaves it open (a ridge)."""
    valid: str
    """Where it holds."""

    def along(self, b: float) -> float:
        """Exponent of lr in D along B ~ D^b."""
        return self.x + b * self.y


def predicted_exponents(
    kind: Kind = "nonconvex",
    *,
    momentum: Momentum = "fixed",
    large_batch: bool = False,
    q: float = 0.5,
    source: float | None = None,
    capacity: float | None = None,
) -> PredictedExponents:
    """Asymptotic exponents of a bound's optimal lr.

    Args:
        kind: as in `LMOBound`; frank-wolfe has nonconvex's exponents.
        momentum: fixed a; tuned a at every (B, D) (simplified form); or proportional, a ~ B < 1.
        large_batch: tuned momentum above the critical batch, where a = 1.
        q: noise exponent; it moves the tuned regime and the optimal batch only.
        source, capacity: s and r of the power-law proxy.

    Raises:
        ValueError: a regime the bounds do not settle, or a power law without s and r.
    """
    # Validates kind, q, source and capacity in one place.
    bound = LMOBound(1.0, 1.0, 1.0, q=q, kind=kind, source=source, capacity=capacity)
    if momentum not in ("fixed", "tuned", "proportional"):
        raise ValueError(f"momentum must be fixed, tuned or proportional, got {momentum!r}")
    if bound.kind == "power-law":
        s, r = bound.source or 0.0, bound.capacity or 0.0
        if momentum != "fixed":
            raise ValueError(
                "the power-law proxy predicts lr at fixed momentum; its loss is flat in momentum"
            )
        x = (2 * q) / (1 + s + r) - 1
        return PredictedExponents(x, 1 - q, None, "noise-dominated steps (heuristic)")
    if bound.kind == "star-convex":
        if momentum != "fixed":
            raise ValueError(
                "star-convex exponents are derived at fixed momentum; use local_exponents elsewhere"
            )
        return PredictedExponents(-1.0, 1.0, 1 / (1 + q), "fixed momentum, up to a logarithm")
    if momentum == "proportional":
        return PredictedExponents(-0.5, 1.0, None, "a ~ B, a < 1")
    if momentum == "fixed" or large_batch:
        optimal = 1 / (2 * q + 1) if momentum == "fixed" else None
        return PredictedExponents(-0.5, 0.5, optimal, "fixed momentum" if optimal else "B > B_c, a = 1")
    return PredictedExponents(
        -(q + 1) / (2 * q + 1), 1.0, None, "B well below B_c (0.01 B_c), tuned momentum"
    )


@dataclass(frozen=True, slots=True)
class LocalExponents:
    """Slopes of the bound's own optimum at one point: what the asymptote becomes at finite size (checked)."""

    x: float
    """d ln η* / d ln D at fixed B."""
    y: float
    """d ln η* / d ln B at fixed D."""
    momentum_tokens: float
    momentum_batch: float


def local_exponents(
    bound: LMOBound, tokens: float, batch: float, *, momentum: float | None = None, step: float = 0.05
) -> LocalExponents:
    """Central differences of ln η* and ln a* in ln D and ln B.

    Args:
        momentum: held at this value; None tunes it at every point.
        step: half-width in natural logarithm; 0.05 is narrow against the bends of the bounds.

    Raises:
        ValueError: batch · e^step beyond tokens · e^-step.
    """

    def logs(d: float, b: float) -> Array:
        best = bound.optimum(tokens * np.exp(d), batch=batch * np.exp(b), momentum=momentum)
        return np.log([best.lr, best.momentum])

    along_d = (logs(step, 0.0) - logs(-step, 0.0)) / (2 * step)
    along_b = (logs(0.0, step) - logs(0.0, -step)) / (2 * step)
    return LocalExponents(float(along_d[0]), float(along_b[0]), float(along_d[1]), float(along_b[1]))


@dataclass(frozen=True)
class FittedExponents:
    """The fitted plane of optimal lr with bootstrap intervals."""

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


def interval(value: float, samples: Array, level: float = LEVEL) -> Estimate:
    """Percentile interval of bootstrap samples; failed resamples (NaN) are left out."""
    good = samples[np.isfinite(samples)]
    if good.size == 0:
        return Estimate(float(value), -np.inf, np.inf)
    low, high = np.quantile(good, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(value), float(low), float(high))


@dataclass(frozen=True, slots=True)
class PublishedExponent:
    """What a source reports about lr against tokens, as cited; never a value this project is tuned to."""

    source: str
    reference: str
    tokens: float
    """Exponent of lr in D along the source's own batch path."""
    b: float
    """Exponent of batch in D along that path; 0 where batch was fixed."""
    note: str = ""

    @property
    def bound(self) -> float:
        """What the bound predicts at fixed momentum along the same path: (b − 1)/2."""
        return predicted_exponents().along(self.b)

    @property
    def gap(self) -> float:
        """Observed minus bound."""
        return self.tokens - self.bound


BESIDES_LIBRARY: tuple[PublishedExponent, ...] = (
    PublishedExponent("HyperP (Muon)", "arXiv:2603.28743", -0.32, 0.0, "B^0.56 at fixed tokens (bound 0.5)"),
    PublishedExponent(
        "von Rütte et al.", "diffusion LM, constant lr", 0.28, 0.82, "lr ~ B^0.34 along that path"
    ),
)
"""Published exponents that are no law of the library: they come without a way to predict."""


def published_exponents() -> tuple[PublishedExponent, ...]:
    """Everything published that separates tokens from size: the law library's laws and the exponents besides.

    Laws that follow compute (DeepSeek) confound D with N and are left out.
    """
    found = []
    for name in library.names():
        law = library.load(name)
        if not isinstance(law, library.PublishedLaw) or law.lr is None or "compute" in law.lr.exponents:
            continue
        b = law.batch.exponents.get("tokens", 0.0) if law.batch is not None else 0.0
        total = law.lr.exponents.get("tokens", 0.0) + b * law.lr.exponents.get("batch", 0.0)
        found.append(PublishedExponent(law.title, law.source, total, b, law.note))
    return (*found, *BESIDES_LIBRARY)


def side_by_side(
    fitted: FittedExponents, *, b: float, published: Sequence[PublishedExponent] | None = None
) -> list[tuple[str, float, float, float]]:
    """Rows (source, exponent of lr in D, bound at the source's b, gap): the fit along B ~ D^b first, then published.

    `published` defaults to `published_exponents()`.
    """
    mine = fitted.along(b).value
    bound = predicted_exponents().along(b)
    rows = [(f"fitted, b = {b:g}", mine, bound, mine - bound)]
    others = published_exponents() if published is None else published
    return rows + [(p.source, p.tokens, p.bound, p.gap) for p in others]
