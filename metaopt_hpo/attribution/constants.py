"""The bound's constants, measured on a live run: Δ, L, noise and its tail, E₀ and the gradient-noise scale.

Everything is in the method's own pair of norms (ℓ∞ for steps, ℓ1 for gradients under signSGD): the noise is measured as
a dual norm of differences, never as norm equivalence × standard deviation, which overstates it by up to √d.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls

from metaopt_hpo.attribution.estimand import AttributionError
from metaopt_hpo.attribution.levels import MOMENTUM, Noise
from metaopt_hpo.attribution.stepping import World
from metaopt_hpo.scaling.estimates import Estimate
from metaopt_hpo.theory.bounds import Form, Kind, LMOBound
from metaopt_hpo.theory.intervals import interval

Array = NDArray[np.float64]
MIN_POINTS = 8
"""Losses below which a floor cannot be told from the curve."""


@dataclass(frozen=True)
class RunProbes:
    """What is recorded along one run. All norms are dual norms (ℓ1 under signSGD)."""

    losses: Array
    """Training curve at increasing steps, the first before any step."""
    steps: Array
    """Steps of those losses, from 0."""
    secants: Array
    """‖∇f(w⁺) − ∇f(w)‖*/‖w⁺ − w‖ with the same batch on both sides."""
    halves: Mapping[int, Array]
    """‖g₁ − g₂‖* of two independent batches of the given size each, at the same weights."""
    pairs: Mapping[int, Array]
    """(samples, 2): |g₁ − g₂|² and ⟨g₁, g₂⟩ in the Euclidean norm, for the noise scale."""
    start_error: float
    """‖m₀ − ∇f(w₀)‖* of the run's first momentum."""
    grad_norm: Array
    """‖∇f‖* along the run."""
    unit: str
    """What one unit of batch is: "token", "sample"."""


@dataclass(frozen=True)
class Constants:
    """Measured constants with intervals; `bound()` puts them into a bound."""

    delta: float
    """First loss minus the fitted floor."""
    floor: float
    smoothness: Estimate
    """Mean secant."""
    smoothness_max: float
    noise: Estimate
    """rs of one unit of batch, dual norm."""
    q: Estimate
    """Noise falls like B^-q."""
    tail_index: Estimate
    """p = 1/(1−q): moments up to p exist; 2 is finite variance."""
    e0: float
    noise_scale: Estimate
    """tr Σ / |G|² (McCandlish et al. 2018), in units of batch, averaged over the run."""
    grad_norm: Array
    unit: str

    @property
    def grad_norm_falls(self) -> bool:
        """Whether ‖∇f‖* ends below where it began: otherwise the averaged norm is no usable criterion."""
        quarter = max(1, len(self.grad_norm) // 4)
        return bool(self.grad_norm[-quarter:].mean() < self.grad_norm[:quarter].mean())

    def bound(self, *, form: Form = "tight", kind: Kind = "nonconvex", worst_case: bool = False) -> LMOBound:
        """A bound with these constants; `worst_case` takes the largest secant for L, as the theorem does."""
        smoothness = self.smoothness_max if worst_case else self.smoothness.value
        q = min(0.5, self.q.value) if self.q.high < 0.5 else 0.5
        return LMOBound(
            self.delta, smoothness, self.noise.value, e0=self.e0, q=q, form=form, kind=kind, unit=self.unit
        )


def estimate_constants(run: RunProbes, *, bootstrap: int = 500, seed: int = 0) -> Constants:
    """Constants of the bound from one run's probes.

    q is the slope of ln ‖g₁ − g₂‖* in ln B over the batch sizes probed, and rs = ‖g₁ − g₂‖*·B^q·2^−(1−q) (at q = 1/2
    the familiar √(B/2)); intervals are bootstraps over the probes.

    Raises:
        AttributionError: fewer than 8 losses, one batch size only, no secants, or a curve that never falls.
        ValueError: constants without a unit.
    """
    if not run.unit.strip():
        raise ValueError(f"unit must name what one unit of batch is, such as 'token', got {run.unit!r}")
    if len(run.losses) < MIN_POINTS:
        raise AttributionError(f"{len(run.losses)} losses cannot show a floor: record at least {MIN_POINTS}")
    if len(run.halves) < 2:
        raise AttributionError(
            "noise needs two-batch differences at two batch sizes or more, to tell its tail"
        )
    if len(run.secants) == 0:
        raise AttributionError("smoothness needs at least one secant on a common batch")
    floor = fitted_floor(run.steps, run.losses)
    delta = float(run.losses[0] - floor)
    if delta <= 0:
        raise AttributionError(
            "the loss never fell below its start: the run shows no gap Δ; use a smaller lr"
        )
    rng = np.random.default_rng(seed)
    sizes = np.array(sorted(run.halves), dtype=float)

    def noise_of(draw: bool) -> tuple[float, float]:
        means = [np.mean(_resample(run.halves[int(b)], rng) if draw else run.halves[int(b)]) for b in sizes]
        q = -float(np.polyfit(np.log(sizes), np.log(means), 1)[0])
        used = min(q, 0.5)
        return q, float(np.mean(np.array(means) * sizes**used * 2.0 ** -(1 - used)))

    samples = np.array([noise_of(True) for _ in range(bootstrap)])
    q, rs = noise_of(False)
    mean = float(run.secants.mean())
    secants = np.array([_resample(run.secants, rng).mean() for _ in range(bootstrap)])
    tail = 1 / (1 - np.clip(samples[:, 0], 0.0, 0.5))
    scale, scales = _noise_scale(run.pairs, rng, bootstrap)
    return Constants(
        delta=delta,
        floor=floor,
        smoothness=interval(mean, secants),
        smoothness_max=float(run.secants.max()),
        noise=interval(rs, samples[:, 1]),
        q=interval(q, samples[:, 0]),
        tail_index=interval(1 / (1 - min(max(q, 0.0), 0.5)), tail),
        e0=run.start_error,
        noise_scale=interval(scale, scales),
        grad_norm=run.grad_norm,
        unit=run.unit,
    )


def fitted_floor(steps: Array, losses: Array) -> float:
    """E of E + A·(1 + k)^−s, with A, E >= 0: s is scanned, A and E solved by non-negative least squares."""
    best, floor = np.inf, 0.0
    for s in np.geomspace(0.05, 2.0, 60):
        basis = np.column_stack([np.ones(len(steps)), (1 + np.asarray(steps, dtype=float)) ** -s])
        solution, residual = nnls(basis, np.asarray(losses, dtype=float))
        if residual < best:
            best, floor = residual, float(solution[0])
    return min(floor, float(np.min(losses)))


def probe_run(
    world: World,
    *,
    lr: float,
    batch: int,
    steps: int,
    seed: int = 0,
    noise: Noise = "minibatch",
    a: float = MOMENTUM,
    batches: Sequence[int] = (),
    probes: int = 32,
    unit: str = "sample",
) -> RunProbes:
    """Run signSGD once on a world and record what `estimate_constants` needs, at `probes` points of the run.

    Args:
        batches: sizes for the two-batch differences; default the batch and 4 and 16 times it.
        unit: of batch: "token" for language models.

    Raises:
        ValueError: fewer steps than probes, or an lr, a batch or a momentum that no run can have.
    """
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr!r}")
    if not 0 < a <= 1:
        raise ValueError(f"momentum a must lie in (0, 1] (it is 1 − β₁), got {a!r}")
    if min([batch, *batches]) < 1:
        raise ValueError(f"batch and batches must be at least 1, got {batch!r} and {tuple(batches)!r}")
    if steps < probes:
        raise ValueError(f"steps must be at least the {probes} probes, got {steps!r}")
    sizes = list(batches) or [batch, 4 * batch, 16 * batch]
    w = world.start([seed])[None, None, None].clone()
    out = torch.empty_like(w)

    def draws(size: int, stream: int) -> Iterator[Any]:
        key = int(np.random.SeedSequence([seed, size, stream]).generate_state(1)[0])
        return world.stream(noise, size, 1, torch.Generator().manual_seed(key))

    def stochastic(at: torch.Tensor, size: int, drawn: object) -> torch.Tensor:
        return world.noisy_gradient(at, noise, [size], [drawn], out).clone()

    training = draws(batch, 0)
    probing = {b: draws(b, 1) for b in sizes}
    m = stochastic(w, batch, next(training))
    start_error = float((m - world.gradient(w)).abs().sum())
    due = set(np.unique(np.linspace(0, steps - 1, probes).astype(int)).tolist())
    losses, at, secants, norms = [], [], [], []
    halves: dict[int, list[float]] = {b: [] for b in sizes}
    pairs: dict[int, list[tuple[float, float]]] = {b: [] for b in sizes}
    for k in range(steps):
        drawn = next(training)
        g = stochastic(w, batch, drawn)
        m = torch.lerp(m, g, a)
        following = w - lr * torch.sign(m)
        if k in due:
            losses.append(float(world.loss(w)))
            at.append(k)
            norms.append(float(world.gradient(w).abs().sum()))
            secants.append(float((stochastic(following, batch, drawn) - g).abs().sum()) / lr)
            for b in sizes:
                g1, g2 = (stochastic(w, b, next(probing[b])) for _ in range(2))
                halves[b].append(float((g1 - g2).abs().sum()))
                pairs[b].append((float((g1 - g2).square().sum()), float((g1 * g2).sum())))
        w = following
    return RunProbes(
        np.array(losses),
        np.array(at, dtype=float),
        np.array(secants),
        {b: np.array(v) for b, v in halves.items()},
        {b: np.array(v) for b, v in pairs.items()},
        start_error,
        np.array(norms),
        unit,
    )


def _noise_scale(pairs: Mapping[int, Array], rng: np.random.Generator, bootstrap: int) -> tuple[float, Array]:
    """B/2·|g₁−g₂|² estimates tr Σ and ⟨g₁, g₂⟩ estimates |G|², both without bias; their means are divided."""

    def ratio(rows: Mapping[int, Array]) -> float:
        trace = np.mean([b / 2 * v[:, 0].mean() for b, v in rows.items()])
        square = np.mean([v[:, 1].mean() for v in rows.values()])
        return float(trace / square) if square > 0 else float("inf")

    samples = [
        ratio({b: v[rng.integers(len(v), size=len(v))] for b, v in pairs.items()}) for _ in range(bootstrap)
    ]
    return ratio(pairs), np.array(samples)


def _resample(values: Array, rng: np.random.Generator) -> Array:
    return values[rng.integers(len(values), size=len(values))]
