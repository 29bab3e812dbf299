"""Cheap worlds: quadratics with power-law spectra and logistic regression, every run of a grid in one tensor.

A quadratic with curvatures h_i = i^(−1/r) and h_i·w_i² ∝ i^(−(1+s/r)) has source exponent s (its noiseless loss falls
like τ^−s) and capacity exponent r (τ^r directions have converged by time τ): the two numbers of the generalised
proxy. r = 0 puts three quarters of the directions at h = 1, where they converge at once, and the rest on a
geometric spectrum: the count of converged, noisy directions barely grows (local r ≈ .02).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.attribution.levels import HEAVY_TAIL, Noise
from metaopt_hpo.attribution.stepping import RECORDS

GEOMETRIC_DECADES = 6
"""Curvatures of the r = 0 spectrum span six decades: slow directions never converge within the budgets used here."""
LABEL_NOISE = 1.0
BLOCK = 32
"""Steps of noise, or rows of minibatches, drawn at a time: one call a step would cost more than the numbers do."""


class Quadratic:
    """f(w) = ½ Σ h_i w_i², normalised to f(w₀) = 1 and h₁ = 1.

    Args:
        name: of the world.
        source: s > 0.
        capacity: r >= 0.
        dim: number of directions; few of them make the spectrum end within the budget ("finite").
        sigma: standard deviation of one sample's gradient noise in each coordinate.
        fast_share: share of the first loss in the fast directions of an r = 0 spectrum. At 0 they start at rest, and
            noise makes ‖g‖ rise during a run; with a share ‖g‖ falls, as the bounded quantity needs, but short runs
            must also spend steps on them.

    Noise levels: gaussian (σ/√B); state-dependent (its variance follows the loss, down to a tenth); heavy (Student t
    with 1.5 degrees of freedom, scale σ·B^(−1/3)); minibatch (least squares on fresh samples x ~ N(0, diag h) with
    label noise: real minibatch gradients, neither isotropic nor independent of the state).
    """

    noises: tuple[Noise, ...] = ("gaussian", "state-dependent", "heavy", "minibatch")
    floor = 0.0
    records = RECORDS

    def __init__(
        self,
        name: str,
        *,
        source: float,
        capacity: float,
        dim: int,
        sigma: float = 4.0,
        fast_share: float = 0.0,
    ) -> None:
        if not (source > 0 and capacity >= 0 and dim >= 4 and sigma > 0 and 0 <= fast_share < 1):
            raise ValueError(
                "a quadratic needs source > 0, capacity >= 0, dim >= 4, sigma > 0 and fast_share in [0, 1), got "
                f"{source}, {capacity}, {dim}, {sigma}, {fast_share}"
            )
        self.name, self.source, self.capacity, self.sigma = name, source, capacity, sigma
        i = torch.arange(1, dim + 1, dtype=torch.float64)
        if capacity > 0:
            h, energy = i ** (-1 / capacity), i ** (-(1 + source / capacity))
        else:
            slow = torch.logspace(0, -GEOMETRIC_DECADES, dim // 4, dtype=torch.float64)
            h = torch.cat([torch.ones(dim - dim // 4, dtype=torch.float64), slow])
            share = fast_share / (1 - fast_share) * (slow**source).sum() / (dim - dim // 4)
            energy = torch.cat([share.expand(dim - dim // 4), slow**source])
        self.h = h.float()
        self._curvatures = self.h[None]
        self.w0 = torch.sqrt(2 * energy / energy.sum() / h).float()

    def start(self, seeds: Sequence[int]) -> Tensor:
        return self.w0.expand(len(seeds), -1)

    def loss(self, w: Tensor) -> Tensor:
        return 0.5 * (w * w) @ self.h.to(w.device)

    def gradient(self, w: Tensor) -> Tensor:
        return w * self.h.to(w.device)

    def stream(self, noise: Noise, batch: int, seeds: int, generator: torch.Generator) -> Iterator[Any]:
        dim = len(self.h)
        if noise == "minibatch":
            scale, steps = self.h.sqrt(), max(1, BLOCK // batch)
            while True:
                rows = torch.randn(steps, seeds, batch, dim, generator=generator).mul_(scale)
                labels = torch.randn(steps, seeds, 1, batch, generator=generator).mul_(LABEL_NOISE)
                yield from zip(rows, labels, strict=True)
        sample = student_t if noise == "heavy" else torch.randn
        power = 1 - 1 / HEAVY_TAIL if noise == "heavy" else 0.5
        while True:
            yield from sample((BLOCK, seeds, dim), generator=generator).mul_(self.sigma * batch**-power)

    def noisy_gradient(
        self, w: Tensor, noise: Noise, batches: Sequence[int], drawn: Sequence[Any], out: Tensor
    ) -> Tensor:
        if noise == "minibatch":
            return self._least_squares(w, batches, drawn, out)
        z = common(drawn, w)
        if noise == "state-dependent":
            z = z * torch.sqrt(0.1 + 0.9 * self.loss(w))[..., None]
        return torch.addcmul(z, w, self._rows(w), out=out)

    def _rows(self, w: Tensor) -> Tensor:
        """The curvatures once a seed, (seeds, dim): long runs of memory are stepped through faster than short ones."""
        if self._curvatures.shape != w.shape[-2:] or self._curvatures.device != w.device:
            self._curvatures = self.h.to(w.device).expand(w.shape[-2:]).contiguous()
        return self._curvatures

    def _least_squares(self, w: Tensor, batches: Sequence[int], drawn: Sequence[Any], out: Tensor) -> Tensor:
        for c, (b, (x, y)) in enumerate(zip(batches, drawn, strict=True)):
            rows, labels = x.to(w.device), y.to(w.device)
            # (R, b): (x·w + y)/b of every run, seeds leading; then its product with the rows is the mean gradient.
            residual = torch.baddbmm(labels, by_seed(w[c]), rows.mT, beta=1 / b, alpha=1 / b)
            by_seed(out[c]).copy_(torch.bmm(residual, rows))
        return out


class Logistic:
    """Logistic regression on a fixed set of examples with power-law features; minibatches sample its rows.

    The population is the set itself, so that its gradient and its minimum (`floor`, by Newton's method) are exact.
    gaussian noise has the same mean variance a coordinate as one example's gradient at the start.
    """

    noises: tuple[Noise, ...] = ("gaussian", "minibatch")
    records = RECORDS

    def __init__(self, name: str = "logistic", *, dim: int = 24, examples: int = 128, seed: int = 0) -> None:
        self.name = name
        generator = torch.Generator().manual_seed(seed)
        scale = torch.arange(1, dim + 1, dtype=torch.float64) ** -1.0
        x = torch.randn(examples, dim, generator=generator, dtype=torch.float64) * scale
        truth = torch.randn(dim, generator=generator, dtype=torch.float64) * 3
        y = (
            torch.rand(examples, generator=generator, dtype=torch.float64) < torch.sigmoid(x @ truth)
        ).double()
        signed = x * (2 * y - 1)[:, None]
        self.rows = signed.float()
        self.floor = _logistic_minimum(signed)
        self.sigma = float(0.5 * signed.std(dim=0).square().mean().sqrt())

    def start(self, seeds: Sequence[int]) -> Tensor:
        return torch.zeros(len(seeds), self.rows.shape[1])

    def loss(self, w: Tensor) -> Tensor:
        losses: Tensor = torch.nn.functional.softplus(-(w @ self.rows.to(w.device).T))
        return losses.mean(-1)

    def gradient(self, w: Tensor) -> Tensor:
        return self._population(w, w.new_empty(w.shape))

    def stream(self, noise: Noise, batch: int, seeds: int, generator: torch.Generator) -> Iterator[Any]:
        if noise == "minibatch":
            while True:
                picks = torch.randint(len(self.rows), (BLOCK, seeds, batch), generator=generator)
                yield from self.rows[picks]
        while True:
            z = torch.randn(BLOCK, seeds, self.rows.shape[1], generator=generator)
            yield from z.mul_(self.sigma / math.sqrt(batch))

    def noisy_gradient(
        self, w: Tensor, noise: Noise, batches: Sequence[int], drawn: Sequence[Any], out: Tensor
    ) -> Tensor:
        if noise == "gaussian":
            return self._population(w, out).add_(common(drawn, w))
        for c, (b, picked) in enumerate(zip(batches, drawn, strict=True)):
            x = picked.to(w.device)
            slope = torch.bmm(by_seed(w[c]), x.mT).neg_().sigmoid_()
            by_seed(out[c]).copy_(torch.bmm(slope, x)).mul_(-1 / b)
        return out

    def _population(self, w: Tensor, out: Tensor) -> Tensor:
        """Mean over all examples of −σ(−x·w)·x, written to `out`: two plain matrix products."""
        rows = self.rows.to(w.device)
        slope = torch.mm(w.reshape(-1, w.shape[-1]), rows.T).neg_().sigmoid_()
        torch.mm(slope, rows / -len(rows), out=out.view(-1, w.shape[-1]))
        return out


def common(drawn: Sequence[Tensor], w: Tensor) -> Tensor:
    """Noise of each cell, shared by its settings and learning rates: (cells, 1, 1, seeds, …), or (seeds, …) of one."""
    if len(drawn) == 1:
        return drawn[0].to(w.device)  # it broadcasts as it is, and every view costs time at every step
    return torch.stack(list(drawn)).to(w.device)[:, None, None]


def by_seed(runs: Tensor) -> Tensor:
    """One cell's runs, (settings, lrs, seeds, …), as a view with seeds first: (seeds, settings · lrs, …)."""
    return runs.flatten(0, 1).transpose(0, 1)


def student_t(shape: Sequence[int], *, generator: torch.Generator) -> Tensor:
    """Student t with `HEAVY_TAIL` degrees of freedom ν, exactly: √(ν(U^(−2/ν) − 1))·cos 2πV (Bailey 1994).

    Cheaper than a normal over the root of a gamma variate, which is drawn by rejection.
    """
    u, v = (torch.rand(*shape, generator=generator) for _ in range(2))
    # 1 − U lies in (0, 1], so that no variate is infinite.
    radius: Tensor = torch.special.expm1(torch.log1p(-u) * (-2 / HEAVY_TAIL)).mul_(HEAVY_TAIL).sqrt_()
    return radius * torch.cos(2 * math.pi * v)


def _logistic_minimum(signed: Tensor) -> float:
    """Minimum of mean softplus(−x·w), with a tiny ridge so that separable directions stay finite."""
    w = torch.zeros(signed.shape[1], dtype=torch.float64)
    ridge = 1e-9
    for _ in range(100):
        p = torch.sigmoid(-(signed @ w))
        g = -(p @ signed) / len(signed) + ridge * w
        hessian = (signed * (p * (1 - p))[:, None]).T @ signed / len(signed)
        w = w - torch.linalg.solve(hessian + ridge * torch.eye(len(w), dtype=torch.float64), g)
    return float(torch.nn.functional.softplus(-(signed @ w)).mean())


def tier0_worlds() -> dict[str, Quadratic | Logistic]:
    """The worlds of tier 0, by name; s and r as in the toy results that the experiment reproduces or refutes."""
    worlds: list[Quadratic | Logistic] = [
        Quadratic("quadratic", source=0.53, capacity=0.33, dim=128),
        Quadratic("infinite", source=1 / 3, capacity=1 / 3, dim=64),
        Quadratic("hard", source=0.15, capacity=0.0, dim=64, fast_share=0.5),
        Quadratic("hard-at-rest", source=0.15, capacity=0.0, dim=64),
        Logistic(),
    ]
    return {w.name: w for w in worlds}
