"""Worlds whose truth is known: tables of runs on both sides of what a law can bear, and a larger target.

Each world is a power law with one thing unusual about it: a bend, a step, sizes in mixed units, exploded runs, few
runs. `false_confidence` fits laws to them and counts how often one is wrong without a word.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from metaopt_hpo.errors import MetaOptWarning
from metaopt_hpo.trials.table import TrialTable

SIZES = (3e7, 6e7, 1.2e8, 2.4e8)
TOKENS = (2e9, 6e9, 2e10)
TARGET = (3e9, 2e11)

Shift = Callable[[float], float]


def nothing(_: float) -> float:
    """No departure from the power law."""
    return 0.0


def itself(size: float) -> float:
    """A size as it is."""
    return size


@dataclass(frozen=True)
class World:
    """A truth, and how it is sampled.

    Attributes:
        name: what is unusual about it.
        lr, lr_tokens: ln lr* added to the power law, as functions of ln(size / 1e8) and of ln(tokens / 1e10).
        batch: ln batch* added, as a function of ln(tokens / 1e10).
        noise: standard deviation of ln loss of a run.
        curvature: h₁₁ of the loss surface in ln lr; in ln batch it is the same, with a valley of slope ½.
        growth: factor on the curvature for each e-fold of size.
        quartic: of the surface in ln lr, relative to h₁₁.
        scatter: standard deviation, ln units, of each cell's optimum about the truth.
        sizes, tokens: of the cells; `per_parameter` gives every size so many tokens instead.
        runs: lr values by batches in a cell.
        exploded: share of runs, and how much their ln loss is more than it should be; they stay in the table.
        edge: distance of the edge of stability above ln lr*, beyond which all runs explode likewise.
        span: half-width of the grid, ln units.
        off: standard deviation of the grids' centres about the optima.
        counted: a size as the table gives it.
        target: size and tokens that are asked for.
    """

    name: str
    lr: Shift = nothing
    lr_tokens: Shift = nothing
    batch: Shift = nothing
    noise: float = 2e-3
    curvature: float = 0.02
    growth: float = 1.0
    quartic: float = 0.0
    scatter: float = 0.0
    sizes: tuple[float, ...] = SIZES
    tokens: tuple[float, ...] = TOKENS
    per_parameter: float = 0.0
    runs: tuple[int, int] = (6, 4)
    exploded: tuple[float, float] = (0.0, 0.0)
    edge: float = np.inf
    span: float = 1.7
    off: float = 0.5
    counted: Shift = itself
    target: tuple[float, float] = TARGET

    def optimum(self, size: float, tokens: float) -> tuple[float, float]:
        """(ln lr*, ln batch*)."""
        n, d = float(np.log(size / 1e8)), float(np.log(tokens / 1e10))
        x = float(np.log(3e-3)) - 0.45 * n + 0.2 * d + self.lr(n) + self.lr_tokens(d)
        return x, float(np.log(5e5)) + 0.55 * d + self.batch(d)

    def excess(self, size: float, tokens: float, lr: float, batch: float) -> float:
        """ln loss above the best at this size and number of tokens."""
        x, y = self.optimum(size, tokens)
        return self._bowl(size, float(np.log(lr)) - x, float(np.log(batch)) - y)

    def best_at(self, size: float, tokens: float, batch: float) -> float:
        """The least of `excess` at this batch."""
        v = float(np.log(batch)) - self.optimum(size, tokens)[1]
        return min(self._bowl(size, float(u), v) for u in np.linspace(-6.0, 6.0, 2401))

    def _bowl(self, size: float, u: float, v: float) -> float:
        h = self.curvature * self.growth ** float(np.log(size / 1e8))
        bowl = 0.5 * u * u - 0.35 * u * v + 0.4 * v * v + 0.1 * u**3 * (u > 0) + self.quartic * u**4
        return float(h * bowl) + self.exploded[1] * (u > self.edge)

    def table(self, seed: int) -> TrialTable:
        """Runs on grids about a guess of each cell's optimum that is off by `off`."""
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        rows = []
        share, jump = self.exploded
        for size in self.sizes:
            for tokens in (self.per_parameter * size,) if self.per_parameter else self.tokens:
                truth = np.array(self.optimum(size, tokens)) + self.scatter * rng.standard_normal(2)
                x, y = truth + self.off * rng.standard_normal(2)
                for lr in x + np.linspace(-self.span, self.span, self.runs[0]):
                    batches = np.linspace(-self.span, self.span, self.runs[1]) if self.runs[1] > 1 else [0.0]
                    for batch in y + np.array(batches):
                        loss = 1.7 + 0.6 * (size / 1e8) ** -0.3 + 0.4 * (tokens / 1e10) ** -0.3
                        z = self._bowl(size, float(lr - truth[0]), float(batch - truth[1]))
                        z += self.noise * rng.standard_normal() + jump * (rng.random() < share)
                        where = self.counted(size), tokens, np.exp(batch), np.exp(lr)
                        rows.append((*where, loss * np.exp(z)))
        frame = pd.DataFrame(rows, columns=["size", "tokens", "batch", "lr", "loss"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MetaOptWarning)
            return TrialTable.from_frame(frame, implausible="warn")  # reading them would refuse some


def worlds() -> list[World]:
    """Those that a law can bear, then those that it cannot; in the last ones nothing in the runs says so."""
    return [*_bearable(), *_bent(), *_miscounted(), *_unseeable()]


SMALL, FEW = (3e7, 6e7, 1.2e8), (2e9, 6e9)
SIX = (1.5e7, 3e7, 6e7, 1.2e8, 2.4e8, 4.8e8)
NEAR = (6e8, 5e10)


def _bearable() -> list[World]:
    return [
        World("plain"),
        World("plain, noise 0.05 %", noise=5e-4),
        World("plain, noise 0.5 %", noise=5e-3),
        World("plain, noise 2 %", noise=2e-2),
        World("plain, noise 2 %, one batch", noise=2e-2, runs=(6, 1)),
        World("plain, three sizes", sizes=SMALL),
        World("plain, three sizes, two numbers of tokens", sizes=SMALL, tokens=FEW),
        World("plain, six sizes", sizes=SIX),
        World("plain, small grids", runs=(4, 3), sizes=SMALL, tokens=FEW),
        World("plain, one batch", runs=(7, 1)),
        World("plain, tokens 20 a parameter", per_parameter=20.0, sizes=SIX, target=(3e9, 6e10)),
        World("plain, a near target", target=NEAR),
        World("plain, a far target", target=(1e10, 1e12)),
        World("plain, sharp", curvature=0.08),
        World("plain, flat", curvature=0.004),
        World("plain, wide grids", span=2.6),
        World("plain, narrow grids", span=0.9),
        World("plain, optima scatter by 0.15", scatter=0.15),
        World("plain, optima scatter by 0.3", scatter=0.3),
        World("plain, optima scatter by 0.3, a near target", scatter=0.3, target=NEAR),
        World("plain, a quartic bowl", quartic=0.1),
        World("sharper with size", growth=1.25),
        World("8 % of runs exploded by a tenth", exploded=(0.08, 0.1)),
        World("8 % of runs exploded threefold", exploded=(0.08, 1.1)),
        World("an edge of stability", edge=0.7, exploded=(0.0, 0.5)),
        World("a gentle bend", lr=lambda n: 0.02 * n * n),
    ]


def _bent() -> list[World]:
    return [
        World("a bend", lr=lambda n: 0.06 * n * n),
        World("a bend down", lr=lambda n: -0.08 * n * n),
        World("a bend, six sizes", lr=lambda n: 0.06 * n * n, sizes=SIX),
        World("a bend, one batch", lr=lambda n: 0.08 * n * n, runs=(7, 1)),
        World("a bend, optima scatter by 0.15", lr=lambda n: 0.08 * n * n, scatter=0.15),
        World("a bend, three sizes", lr=lambda n: 0.06 * n * n, sizes=SMALL),
        World("a bend in tokens", lr_tokens=lambda d: 0.08 * d * d),
        World("a bend of the batch", batch=lambda d: 0.08 * d * d),
        World("a kink among the sizes", lr=lambda n: 0.5 * max(n, 0.0)),
        World("a kink among six sizes", lr=lambda n: 0.5 * max(n, 0.0), sizes=SIX),
        World("a kink among the tokens", lr_tokens=lambda d: 0.5 * max(d + 0.5, 0.0)),
        World("another regime at the last size", lr=lambda n: 0.9 * (n > 0.8)),
        World("another regime at the last size, noise 0.5 %", lr=lambda n: 1.5 * (n > 0.8), noise=5e-3),
        World("another regime among six sizes", lr=lambda n: 0.9 * (n > 0.4), sizes=SIX),
        World("another regime at the last tokens", lr_tokens=lambda d: -0.9 * (d > 0.5)),
    ]


def _miscounted() -> list[World]:
    return [
        World("half the sizes in another count", counted=lambda n: n * (3.0 if n > 1e8 else 1.0)),
        World("every other size in another count", counted=lambda n: n * (3.0 if 5e7 < n < 2e8 else 1.0)),
        World("half the sizes in millions", counted=lambda n: n / (1e6 if n < 1e8 else 1.0)),
        World("the larger half in millions", counted=lambda n: n / (1.0 if n < 1e8 or n > 1e9 else 1e6)),
        World("sizes with embeddings", counted=lambda n: n + 1.0e8),
        World("active for total from 120 M on", counted=lambda n: n / (4.0 if n > 1e8 else 1.0)),
        World("active for total, more experts with size", counted=lambda n: n / max(1.0, (n / 6e7) ** 0.8)),
    ]


def _unseeable() -> list[World]:
    return [
        World("plain, one number of tokens", tokens=(6e9,)),
        World("a kink beyond the sizes", lr=lambda n: 0.5 * max(n - 1.2, 0.0)),
    ]
