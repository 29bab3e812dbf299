"""Many runs of signSGD with momentum at once: all cells, settings, learning rates and seeds in one batched loop.

w⁺ = w − η_k·sign(m⁺), m⁺ = (1−a)m + a·g: the LMO method of the ℓ∞ ball, the bound's proxy for Adam. Tensors have axes
(cells, settings, lrs, seeds, parameters). Cells are sorted by steps, so that finished ones drop off the end. Seeds,
start weights and minibatches or noise are common to all settings and learning rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaopt_hpo.attribution.levels import CRITERIA, Noise, Setting

RECORDS = 64
"""Usual number of points of a run at which ‖g‖* and loss are evaluated: their averages stand for those over steps."""
FLOOR_FRACTION = 0.1
"""The fixed floor of the cosine-floor schedule, as a fraction of the middle cell's middle lr."""


class World(Protocol):
    """A problem with a population loss; weights are flat vectors, all methods broadcast over leading axes."""

    name: str
    noises: tuple[Noise, ...]
    """Levels of the noise factor that this world can produce."""
    floor: float
    """Infimum of the loss where it is known (criteria are then excess losses), else 0."""
    records: int
    """Points of a run at which ‖g‖* is evaluated."""

    def start(self, seeds: Sequence[int]) -> Tensor:
        """Initial weights, (seeds, parameters)."""
        ...

    def loss(self, w: Tensor) -> Tensor:
        """Population loss of weights (..., seeds, parameters): (..., seeds)."""
        ...

    def gradient(self, w: Tensor) -> Tensor:
        """Population gradient, the shape of w."""
        ...

    def draw(self, noise: Noise, batches: Sequence[int], seeds: int, generator: torch.Generator) -> Any:
        """The randomness of one step for each cell and seed."""
        ...

    def noisy_gradient(
        self, w: Tensor, noise: Noise, batches: Sequence[int], drawn: Any, out: Tensor
    ) -> Tensor:
        """Stochastic gradient of weights (cells, settings, lrs, seeds, parameters), written to `out`."""
        ...


@dataclass(frozen=True)
class GridResult:
    """Criteria of every run of a grid. Arrays (cells, settings, lrs, seeds, …); diverged runs are inf."""

    world: str
    tokens: NDArray[np.float64]
    batch: NDArray[np.float64]
    lr: NDArray[np.float64]
    """(cells, lrs)."""
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    criteria: NDArray[np.float64]
    """(cells, settings, lrs, seeds, 4), in the order of `CRITERIA`."""
    growth: NDArray[np.float64]
    """Mean ‖g‖* of the last quarter over that of the first record, (cells, settings, lrs, seeds)."""

    def of(self, settings: Sequence[Setting], criterion: str) -> NDArray[np.float64]:
        """One criterion of some settings, the lowest over them where several are given: (cells, lrs, seeds)."""
        index = [self.settings.index(s) for s in settings]
        # Two steps: a list and a number in one index would move the settings' axis to the front.
        return np.asarray(self.criteria[..., CRITERIA.index(criterion)][:, index].min(axis=1))


def run_grid(
    world: World,
    settings: Sequence[Setting],
    *,
    tokens: Sequence[float],
    batch: Sequence[float],
    lr: NDArray[np.float64],
    seeds: Sequence[int],
    device: str = "cpu",
    middle_batch: float | None = None,
    floor_lr: float | None = None,
    stream: int = 0,
) -> GridResult:
    """Run every (cell, setting, lr, seed) and return its criteria.

    Args:
        settings: all of one noise level, as they share the noise.
        tokens, batch: D and B of each cell, in the world's unit; steps are round(D/B).
        lr: peak learning rates, (cells, lrs), increasing.
        seeds: of start, noise and minibatches; results are a function of them, the cells and `stream`.
        middle_batch: batch at which the half-life level has the fixed level's momentum; default the cells' geometric
            mean. State it, and the next, where a grid is run in pieces.
        floor_lr: floor of the cosine-floor level; default a tenth of the median lr.
        stream: number of the piece, so that pieces have independent noise.

    Raises:
        ValueError: settings of different noise levels or of one the world lacks, or batch above tokens.
    """
    noises = {s.noise for s in settings}
    if len(noises) != 1:
        raise ValueError(f"one grid runs one noise level, got {sorted(noises)}")
    (noise,) = noises
    if noise not in world.noises:
        raise ValueError(f"world {world.name} has no {noise!r} noise; it has {', '.join(world.noises)}")
    d, b = np.asarray(tokens, dtype=float), np.asarray(batch, dtype=float)
    if np.any(b > d):
        raise ValueError(f"batch must not exceed tokens, got batch {b[b > d][0]:g} of tokens {d[b > d][0]:g}")
    order = np.argsort(-d / b, kind="stable")
    middle = float(np.exp(np.log(b).mean())) if middle_batch is None else middle_batch
    floor = FLOOR_FRACTION * float(np.exp(np.median(np.log(lr)))) if floor_lr is None else floor_lr
    generator = torch.Generator().manual_seed(_mix((*seeds, stream)))
    loop = _Loop(
        world,
        tuple(settings),
        noise,
        d[order],
        b[order],
        lr[order],
        tuple(seeds),
        device,
        middle,
        floor,
        generator,
    )
    criteria, growth = loop.run()
    back = np.argsort(order)
    return GridResult(world.name, d, b, lr, tuple(settings), tuple(seeds), criteria[back], growth[back])


class _Loop:
    """The state of one batched grid."""

    def __init__(
        self,
        world: World,
        settings: tuple[Setting, ...],
        noise: Noise,
        tokens: NDArray[np.float64],
        batch: NDArray[np.float64],
        lr: NDArray[np.float64],
        seeds: tuple[int, ...],
        device: str,
        middle: float,
        floor: float,
        generator: torch.Generator,
    ) -> None:
        self.world, self.noise, self.device, self.generator = world, noise, device, generator
        self.batches = [int(x) for x in batch]
        self.steps = np.maximum(1, np.rint(tokens / batch)).astype(int)
        cells, lrs, runs = len(batch), lr.shape[1], len(seeds)
        start = world.start(seeds).to(device)
        self.w = start.expand(cells, len(settings), lrs, *start.shape).clone()
        self.m = torch.zeros_like(self.w)
        # One buffer for gradients and signs: fresh tensors of this size every step cost more than the arithmetic.
        self.buffer = torch.empty_like(self.w)
        exact = [i for i, s in enumerate(settings) if s.init == "gradient"]
        self.first = [i for i, s in enumerate(settings) if s.init == "first-gradient"]
        if exact:
            self.m[:, exact] = world.gradient(start)
        a = [[s.momentum_at(x, middle) for s in settings] for x in batch]
        self.a = torch.tensor(a, dtype=torch.float32, device=device)[:, :, None, None, None]
        longest = int(self.steps.max())
        shapes = np.zeros((cells, len(settings), longest), dtype=np.float32)
        for c in range(cells):
            for i, s in enumerate(settings):
                shapes[c, i, : self.steps[c]] = s.multipliers(int(self.steps[c]))
        self.shapes = torch.from_numpy(shapes).to(device)
        self.lr = torch.tensor(lr, dtype=torch.float32, device=device)[:, None, :]
        floored = torch.tensor(
            [floor if s.schedule == "cosine-floor" else 0.0 for s in settings], device=device
        )
        self.low = torch.minimum(floored[None, :, None], self.lr)
        self.runs = runs

    def run(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        shape = self.w.shape[:-1]
        total, tail, loss_tail = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
        first = torch.zeros(shape, dtype=torch.float64)
        count, tail_count = np.zeros(shape[0]), np.zeros(shape[0])
        records = self.world.records
        due = [set(np.unique(np.arange(records) * k // records).tolist()) for k in self.steps]
        for k in range(int(self.steps.max())):
            n = int(np.sum(self.steps > k))
            record = [c for c in range(n) if k in due[c]]
            if record:
                norm = self.world.gradient(self.w[record]).abs().sum(-1).double().cpu()
                total[record] += norm
                count[record] += 1
                if k == 0:
                    first[record] = norm
                late = [c for c in record if k >= 0.75 * self.steps[c] or self.steps[c] < 4]
                if late:
                    chosen = [record.index(c) for c in late]
                    tail[late] += norm[chosen]
                    loss_tail[late] += self.world.loss(self.w[late]).double().cpu()
                    tail_count[late] += 1
            self._step(k, n)
        per = torch.from_numpy(np.maximum(count, 1))[:, None, None, None]
        late_per = torch.from_numpy(np.maximum(tail_count, 1))[:, None, None, None]
        final = self.world.loss(self.w).double().cpu()
        floor = self.world.floor
        values = torch.stack(
            [total / per, tail / late_per, final - floor, loss_tail / late_per - floor], dim=-1
        ).numpy()
        growth = (tail / late_per / first.clamp_min(1e-30)).numpy()
        return np.where(np.isfinite(values) & (values > 0), values, np.inf), growth

    @torch.no_grad()
    def _step(self, k: int, n: int) -> None:
        batches = self.batches[:n]
        drawn = self.world.draw(self.noise, batches, self.runs, self.generator)
        w, m = self.w[:n], self.m[:n]
        g = self.world.noisy_gradient(w, self.noise, batches, drawn, self.buffer[:n])
        if k == 0:
            for i in self.first:
                m[:, i] = g[:, i]
        m.lerp_(g, self.a[:n])
        s = self.shapes[:n, :, k, None]
        eta = s * self.lr[:n] + (1 - s) * self.low[:n]
        w.addcmul_(torch.sign(m, out=g), eta[..., None, None], value=-1)


def _mix(seeds: Sequence[int]) -> int:
    """One generator seed from several, the same on every machine."""
    return int(np.random.SeedSequence(list(seeds)).generate_state(1)[0])
