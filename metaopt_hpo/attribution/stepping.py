"""Many runs of signSGD with momentum at once: all cells, settings, learning rates and seeds in batched tensors.

w⁺ = w − η_k·sign(m⁺), m⁺ = (1−a)m + a·g: the LMO method of the ℓ∞ ball, the bound's proxy for Adam. Tensors have axes
(cells, settings, lrs, seeds, parameters). Start weights and minibatches or noise are common to all settings and
learning rates; each cell has a stream of its own, so that a run does not depend on what else is in its grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
TILE = 2**17
"""Weights that are stepped together on a CPU: w, m and their gradient then stay in a core's own cache, which is three
times as fast as streaming a whole grid through memory. An accelerator takes the whole grid at once."""


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

    def stream(self, noise: Noise, batch: int, seeds: int, generator: torch.Generator) -> Iterator[Any]:
        """The randomness of one cell, one item a step for all seeds; drawn in blocks, as single draws are expensive."""
        ...

    def noisy_gradient(
        self, w: Tensor, noise: Noise, batches: Sequence[int], drawn: Sequence[Any], out: Tensor
    ) -> Tensor:
        """Stochastic gradient of weights (cells, settings, lrs, seeds, parameters), written to `out`.

        Args:
            drawn: one item of its stream a cell.
        """
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
) -> GridResult:
    """Run every (cell, setting, lr, seed) and return its criteria.

    Args:
        settings: all of one noise level, as they share the noise.
        tokens, batch: D and B of each cell, in the world's unit; steps are round(D/B).
        lr: peak learning rates, (cells, lrs), increasing.
        seeds: of start, noise and minibatches; a run is a function of them, of its cell and of nothing else.
        middle_batch: batch at which the half-life level has the fixed level's momentum; default the cells' geometric
            mean. State it, and the next, where a grid is run in pieces.
        floor_lr: floor of the cosine-floor level; default a tenth of the median lr.

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
    middle = float(np.exp(np.log(b).mean())) if middle_batch is None else middle_batch
    floor = FLOOR_FRACTION * float(np.exp(np.median(np.log(lr)))) if floor_lr is None else floor_lr
    start = world.start(tuple(seeds)).to(device)
    shape = (len(d), len(settings), lr.shape[1], len(seeds))
    criteria, growth = np.empty((*shape, len(CRITERIA))), np.empty(shape)
    per_cell = len(settings) * lr.shape[1] * start.numel()
    together = max(1, TILE // per_cell) if torch.device(device).type == "cpu" else len(d)
    # Cells of one tile have similar lengths: those that are done drop off its end.
    order = np.argsort(-d / b, kind="stable")
    with _one_thread():
        for tile in (order[i : i + together] for i in range(0, len(order), together)):
            loop = _Tile(
                world,
                tuple(settings),
                noise,
                tokens=d[tile],
                batch=b[tile],
                lr=lr[tile],
                seeds=tuple(seeds),
                start=start,
                middle=middle,
                floor=floor,
            )
            criteria[tile], growth[tile] = loop.run()
    return GridResult(world.name, d, b, lr, tuple(settings), tuple(seeds), criteria, growth)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One CPU thread for torch: steps are too small to share, and threads that wait for each other at every one of them
    burn the time of a busy machine many times over."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Tile:
    """The state of the cells that are stepped together."""

    def __init__(
        self,
        world: World,
        settings: tuple[Setting, ...],
        noise: Noise,
        *,
        tokens: NDArray[np.float64],
        batch: NDArray[np.float64],
        lr: NDArray[np.float64],
        seeds: tuple[int, ...],
        start: Tensor,
        middle: float,
        floor: float,
    ) -> None:
        self.world, self.noise, device = world, noise, start.device
        self.batches = [int(x) for x in batch]
        self.steps = np.maximum(1, np.rint(tokens / batch)).astype(int)
        self.ends = {0, *self.steps.tolist()}
        cells, lrs = len(batch), lr.shape[1]
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
        shapes = np.zeros((longest, cells, len(settings)), dtype=np.float32)
        for c in range(cells):
            for i, s in enumerate(settings):
                shapes[: self.steps[c], c, i] = s.multipliers(int(self.steps[c]))
        self.shapes = torch.from_numpy(shapes).to(device)[..., None, None, None]
        peak = torch.tensor(lr, dtype=torch.float32, device=device)[:, None, :, None, None]
        floored = [floor if s.schedule == "cosine-floor" else 0.0 for s in settings]
        self.low = torch.minimum(torch.tensor(floored, device=device)[:, None, None, None], peak)
        self.span = peak - self.low
        self.streams = [
            world.stream(noise, b, len(seeds), torch.Generator().manual_seed(_mix((*seeds, int(d), b))))
            for d, b in zip(tokens, self.batches, strict=True)
        ]

    @torch.no_grad()
    def run(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        shape = self.w.shape[:-1]
        total, tail, loss_tail, first = (torch.zeros(shape, dtype=torch.float64) for _ in range(4))
        count, tail_count = np.zeros(shape[0]), np.zeros(shape[0])
        records = self.world.records
        due: dict[int, list[int]] = {}
        for c, steps in enumerate(self.steps):
            for k in np.unique(np.arange(records) * steps // records).tolist():
                due.setdefault(k, []).append(c)
        n = 0
        for k in range(int(self.steps.max())):
            active = int(np.count_nonzero(self.steps > k)) if k in self.ends else n
            if active != n:
                n, now = active, self._first(active)
            if k in due:
                record = due[k]
                at = self.w if len(record) == len(self.w) else self.w[record]
                norm = self.world.gradient(at).abs().sum(-1).double().cpu()
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
            self._step(k, now)
        per = torch.from_numpy(np.maximum(count, 1))[:, None, None, None]
        late_per = torch.from_numpy(np.maximum(tail_count, 1))[:, None, None, None]
        final = self.world.loss(self.w).double().cpu()
        floor = self.world.floor
        values = torch.stack(
            [total / per, tail / late_per, final - floor, loss_tail / late_per - floor], dim=-1
        ).numpy()
        growth = (tail / late_per / first.clamp_min(1e-30)).numpy()
        return np.where(np.isfinite(values) & (values > 0), values, np.inf), growth

    def _first(self, n: int) -> _Active:
        """Views of the first n cells, those still running; made once, as making them costs as much as a small step."""
        return _Active(
            self.w[:n],
            self.m[:n],
            self.buffer[:n],
            self.a[:n],
            self.low[:n],
            self.span[:n],
            self.shapes[:, :n],
            self.batches[:n],
            self.streams[:n],
        )

    def _step(self, k: int, now: _Active) -> None:
        drawn = [next(s) for s in now.streams]
        g = self.world.noisy_gradient(now.w, self.noise, now.batches, drawn, now.buffer)
        if k == 0:
            for i in self.first:
                now.m[:, i] = g[:, i]
        now.m.lerp_(g, now.a)
        eta = torch.addcmul(now.low, now.shapes[k], now.span)
        now.w.addcmul_(torch.sign(now.m, out=g), eta, value=-1)


@dataclass(frozen=True, slots=True)
class _Active:
    """What one step reads and writes, of the cells that are not done."""

    w: Tensor
    m: Tensor
    buffer: Tensor
    a: Tensor
    low: Tensor
    span: Tensor
    shapes: Tensor
    batches: list[int]
    streams: list[Iterator[Any]]


def _mix(seeds: Sequence[int]) -> int:
    """One generator seed from several, the same on every machine."""
    return int(np.random.SeedSequence(list(seeds)).generate_state(1)[0])
