"""Worlds whose truth is known, right and wrong for a law: how often is a law wrong without a word?

Each world is a table of runs and a larger target. A law is *wrong* where its configuration loses more than half a
percent to the target's best, and *quiet* where it carries none of the warnings that say so (`cautions.WRONG`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from metaopt_hpo.scaling import LawRefused, fit
from metaopt_hpo.scaling.cautions import WRONG
from metaopt_hpo.trials.table import TrialTable
from studies.section import Section

WRONG_EXCESS = 5e-3

SIZES = (3e7, 6e7, 1.2e8, 2.4e8)
TOKENS = (2e9, 6e9, 2e10)
TARGET = (3e9, 2e11)


@dataclass(frozen=True)
class World:
    """A truth, and how it is sampled.

    Attributes:
        name: what is unusual about it.
        lr: ln lr* added to the power law, as a function of ln(size / 1e8).
        noise: standard deviation of ln loss of a run.
        curvature: h₁₁ of the loss surface in ln lr; in ln batch it is the same, with a valley of slope ½.
        growth: factor on the curvature for each e-fold of size.
        sizes, tokens: of the cells.
        runs: lr values by batches in a cell.
        exploded: share of runs that lost a tenth more than they should, left in the table.
        span: half-width of the grid, ln units.
        counted: a size as the table gives it.
    """

    name: str
    lr: Callable[[float], float] = lambda n: 0.0
    noise: float = 2e-3
    curvature: float = 0.02
    growth: float = 1.0
    sizes: tuple[float, ...] = SIZES
    tokens: tuple[float, ...] = TOKENS
    runs: tuple[int, int] = (6, 4)
    exploded: float = 0.0
    span: float = 1.7
    counted: Callable[[float], float] = lambda n: n

    def optimum(self, size: float, tokens: float) -> tuple[float, float]:
        """(ln lr*, ln batch*)."""
        n, d = np.log(size / 1e8), np.log(tokens / 1e10)
        return float(np.log(3e-3) - 0.45 * n + 0.2 * d + self.lr(n)), float(np.log(5e5) + 0.55 * d)

    def excess(self, size: float, tokens: float, lr: float, batch: float) -> float:
        """ln loss above the best at this size and number of tokens."""
        x, y = self.optimum(size, tokens)
        h = self.curvature * self.growth ** np.log(size / 1e8)
        u, v = np.log(lr) - x, np.log(batch) - y
        return float(h * (0.5 * u * u - 0.35 * u * v + 0.4 * v * v) + 0.1 * h * u**3 * (u > 0))

    def table(self, seed: int) -> TrialTable:
        """Runs on grids about a guess of each cell's optimum that is off by half a nat."""
        rng = np.random.default_rng(seed)
        rows = []
        for size in self.sizes:
            for tokens in self.tokens:
                x, y = self.optimum(size, tokens)
                off = 0.5 * rng.standard_normal(2)
                for lr in np.exp(x + off[0] + np.linspace(-self.span, self.span, self.runs[0])):
                    for batch in np.exp(y + off[1] + np.linspace(-self.span, self.span, self.runs[1])):
                        loss = 1.7 + 0.6 * (size / 1e8) ** -0.3 + 0.4 * (tokens / 1e10) ** -0.3
                        z = self.excess(size, tokens, lr, batch) + self.noise * rng.standard_normal()
                        z += 0.1 * (rng.random() < self.exploded)
                        rows.append((self.counted(size), tokens, batch, lr, loss * np.exp(z)))
        return TrialTable.from_frame(pd.DataFrame(rows, columns=["size", "tokens", "batch", "lr", "loss"]))


def worlds() -> list[World]:
    """Right ones and wrong ones, about half and half."""
    small, few = (3e7, 6e7, 1.2e8), (2e9, 6e9)
    return [
        World("plain"),
        World("plain, noise 0.05 %", noise=5e-4),
        World("plain, noise 0.5 %", noise=5e-3),
        World("plain, noise 2 %", noise=2e-2),
        World("plain, three sizes", sizes=small),
        World("plain, three sizes, two numbers of tokens", sizes=small, tokens=few),
        World("plain, small grids", runs=(4, 3), sizes=small, tokens=few),
        World("plain, one number of tokens", tokens=(6e9,)),
        World("plain, sharp", curvature=0.08),
        World("plain, flat", curvature=0.004),
        World("plain, wide grids", span=2.6),
        World("sharper with size", growth=1.25),
        World("8 % of runs exploded", exploded=0.08),
        World("a gentle bend", lr=lambda n: 0.02 * n * n),
        World("a bend", lr=lambda n: 0.06 * n * n),
        World("a bend down", lr=lambda n: -0.08 * n * n),
        World("a bend, three sizes", lr=lambda n: 0.06 * n * n, sizes=small),
        World("a kink among the sizes", lr=lambda n: 0.5 * max(n, 0.0)),
        World("a kink beyond the sizes", lr=lambda n: 0.5 * max(n - 1.2, 0.0)),
        World("another regime at the last size", lr=lambda n: 0.9 * (n > 0.8)),
        World("half the sizes in another count", counted=lambda n: n * (3.0 if n > 1e8 else 1.0)),
        World("sizes with embeddings", counted=lambda n: n + 1.0e8),
    ]


def worlds_section(*, seeds: int = 2) -> Section:
    """Each world's excess, whether its law is quiet, and the rate of false confidence."""
    section = Section(
        f"Worlds of known truth, {seeds} tables each: a target 12 times the largest size",
        ["world", "excess at the target, %", "wrong", "warnings that say so"],
    )
    wrong = quiet_wrong = quiet_right = doubted_right = total = 0
    for world in worlds():
        excesses, codes = [], []
        for seed in range(seeds):
            try:
                p = fit(world.table(seed), draws=100, allow_weak=True).predict(
                    world.counted(TARGET[0]), TARGET[1]
                )
            except LawRefused as e:
                codes.append({f"refused ({e.code})"})
                continue
            excess = np.expm1(world.excess(*TARGET, p.lr.value, p.batch.value))
            said = {w.code for w in p.warnings} & set(WRONG)
            excesses.append(excess)
            codes.append(said)
            total += 1
            is_wrong = excess > WRONG_EXCESS
            wrong += is_wrong
            quiet_wrong += is_wrong and not said
            quiet_right += not is_wrong and not said
            doubted_right += not is_wrong and bool(said)
        section.rows.append(
            [
                world.name,
                " / ".join(f"{100 * e:.2f}" for e in excesses),
                f"{sum(e > WRONG_EXCESS for e in excesses)} of {len(excesses)}",
                " / ".join(", ".join(sorted(c)) or "–" for c in codes),
            ]
        )
    section.note = (
        f"False confidence: {quiet_wrong} of {total} laws are wrong and quiet ({quiet_wrong / total:.0%}); "
        f"{wrong} are wrong. Of {quiet_right + doubted_right} right ones {doubted_right} carry a warning."
    )
    return section
