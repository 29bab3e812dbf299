"""What pilots are expected to leave unknown of the target, before any of them is run.

Linear-Gaussian models of ln lr*, ln batch* and ln loss over (ln size, ln tokens), read at the target:

    ln lr*    = a₀ + a₁ n + a₂ d        a found rate lies beside it by an offset that all such runs share, and its own
    ln batch* = b₀ + b₁ n + b₂ d        seen only where runs of one size and length differ in batch
    ln loss   = ln(E + A e^{-α n} + B e^{-β d})     linear in (ln E, ln A, ln B, α, β) about their prior means

with n = ln size/target's, d = ln tokens/target's. Runs of one cell share the cell's own distance from the law
(`CELL_SCATTER`). Observations add information, so that more pilots never leave more unknown. Weight decay follows
from the timescale τ = batch / (lr · weight decay · tokens), whose best value scatters by `timescale_spread`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metaopt_hpo.plan.model import SELF_TUNING, Uncertainty
from metaopt_hpo.scaling.base.population import FLOOR_SPREAD, Base
from metaopt_hpo.scaling.fitting.floor_error import LEVEL_ERROR
from metaopt_hpo.scaling.forms.decay import timescale_spread
from metaopt_hpo.scaling.forms.surface import CELL_SCATTER, RUN_ERROR, Array
from metaopt_hpo.scaling.policy.design import SLOPE_SPREAD

FOUND_SCATTER = 0.4
"""Standard deviation, ln units, of a rate that MetaOptimize found about its cell's tuned optimum, beside the offset
that such runs share; and `FOUND_OFFSET` that of the offset. On text-lm at 256 to 1,024 steps (`docs/studies/ladder`)
scatter and bias are 0.25 and −0.11; other workloads are believed less."""

FOUND_OFFSET = 0.4

BATCH_SPREAD = 2.0
"""Standard deviation of ln batch* before anything is run and without a base."""

SHARES = (0.80, 0.10, 0.10)
"""Shares of E, A·N^-α, B·D^-β in the target's loss before anything is known, and `EXPONENTS`: Chinchilla's at about a
billion parameters (Hoffmann et al. 2022)."""

EXPONENTS = (0.34, 0.28)

CURVATURE = (0.08, 0.05)
"""h₁₁ and h₂₂ of ln loss in ln lr and ln batch: the surface of Step Law's runs has 0.04 to 0.1, text-lm's 0.1."""

RUN_NOISE = 3e-3
"""Standard deviation, ln loss, of one run."""


@dataclass(frozen=True)
class Run:
    """A pilot as far as its expected information goes."""

    size: float
    tokens: float
    batch: float
    strategy: str = SELF_TUNING


class Knowledge:
    """What is known of a target before any pilot: priors from a base, or wide ones.

    Args:
        size, tokens: of the target.
        lr: range of the search, the prior's where there is no base.
        batch_given: the target's batch is decided, so that nothing of it is unknown.
        base: population that strength is borrowed from.
    """

    def __init__(
        self,
        size: float,
        tokens: float,
        *,
        lr: tuple[float, float],
        batch_given: bool,
        base: Base | None = None,
    ) -> None:
        self.target = (size, tokens)
        self.batch_given = batch_given
        self._kept: dict[object, tuple[Array, Array, Array]] = {}
        box = math.log(lr[1] / lr[0]) / math.sqrt(12.0)
        spread_lr = np.array([box, SLOPE_SPREAD, SLOPE_SPREAD])
        spread_batch = np.array([BATCH_SPREAD, SLOPE_SPREAD, SLOPE_SPREAD])
        widen = 2.0
        if base is not None:
            where = np.log([size, tokens])
            spread_lr = np.minimum(base.at("lr", where)[1], spread_lr)
            if base.has_batch:
                spread_batch = np.minimum(base.at("batch", where)[1], spread_batch)
            widen = base.unlikeness(where)
        self._lr = np.diag(1.0 / np.array([*spread_lr, FOUND_OFFSET]) ** 2)
        self._batch = np.diag(1.0 / spread_batch**2)
        share = FLOOR_SPREAD["share"] * widen
        spread = np.array(
            [
                FLOOR_SPREAD["level"] * widen,
                share,
                share,
                *(FLOOR_SPREAD["exponent"] * widen * np.array(EXPONENTS)),
            ]
        )
        self._floor = np.diag(1.0 / spread**2)

    def after(self, runs: Iterable[Run]) -> Uncertainty:
        """Standard deviations at the target once these runs are done."""
        sd = self._read(*(total[None] for total in self._sum(cells(runs).items())))
        return self.uncertainty(*(float(v[0]) for v in sd))

    def after_each(self, runs: Sequence[Run], blocks: Sequence[Sequence[Run]]) -> Array:
        """Standard deviations (ln lr, ln batch, ln loss) after `runs` and one block each; a block lies in one cell."""
        held = cells(runs)
        total = self._sum(held.items())
        then: tuple[list[Array], ...] = ([], [], [])
        for block in blocks:
            cell = (block[0].size, block[0].tokens)
            new = self._information(cell, (*held.get(cell, ()), *block))
            for k in range(3):
                then[k].append(total[k] + new[k])
                if cell in held:
                    then[k][-1] = then[k][-1] - self._information(cell, tuple(held[cell]))[k]
        return np.column_stack(self._read(*(np.array(t) for t in then)))

    def uncertainty(self, sd_lr: float, sd_batch: float, sd_loss: float) -> Uncertainty:
        """With what follows from these: the weight decay, and the loss that a wrong lr or batch costs."""
        return Uncertainty(
            lr=sd_lr,
            batch=sd_batch,
            weight_decay=math.hypot(sd_lr, sd_batch, timescale_spread(self.target[0])),
            loss=math.hypot(sd_loss, excess(sd_lr, sd_batch)),
        )

    def _sum(self, held: Iterable[tuple[tuple[float, float], Sequence[Run]]]) -> list[Array]:
        """Information of the priors and of cells together."""
        out = [self._lr.copy(), self._batch.copy(), self._floor.copy()]
        for cell, members in held:
            for k, added in enumerate(self._information(cell, tuple(members))):
                out[k] += added
        return out

    def _read(self, lr: Array, batch: Array, floor: Array) -> tuple[Array, Array, Array]:
        """Standard deviations at the target from stacks of information matrices."""
        at = _floor_row(0.0, 0.0)
        sd_lr = np.sqrt(np.linalg.inv(lr)[:, 0, 0] + CELL_SCATTER**2)
        sd_batch = (
            np.zeros_like(sd_lr)
            if self.batch_given
            else np.sqrt(np.linalg.inv(batch)[:, 0, 0] + CELL_SCATTER**2)
        )
        sd_loss = np.sqrt(np.einsum("i,kij,j->k", at, np.linalg.inv(floor), at) + 2.0 * LEVEL_ERROR**2)
        return sd_lr, sd_batch, sd_loss

    def _information(self, cell: tuple[float, float], members: tuple[Run, ...]) -> tuple[Array, Array, Array]:
        """What one cell adds on lr, batch and loss; kept, for a search asks for the same cells again and again."""
        key = (cell, tuple(sorted((r.batch, r.strategy) for r in members)))
        if key not in self._kept:
            n, d = math.log(cell[0] / self.target[0]), math.log(cell[1] / self.target[1])
            at = np.array([1.0, n, d])
            batches = len({r.batch for r in members})
            error = CELL_SCATTER**2 + 2.0 * RUN_ERROR**2 / max(batches - 1, 1)
            batch = np.outer(at, at) / error if batches > 1 else np.zeros((3, 3))
            row = _floor_row(n, d)
            floor = np.outer(row, row) / (2.0 * LEVEL_ERROR**2 + RUN_NOISE**2 / len(members))
            self._kept[key] = (_cell_lr(at, members), batch, floor)
        return self._kept[key]


def cells(runs: Iterable[Run]) -> dict[tuple[float, float], list[Run]]:
    """Runs by size and tokens."""
    out: dict[tuple[float, float], list[Run]] = {}
    for r in runs:
        out.setdefault((r.size, r.tokens), []).append(r)
    return out


def excess(sd_lr: Any, sd_batch: Any) -> Any:
    """Expected ln loss above the best of a configuration whose lr and batch are off by so much; broadcasts."""
    return 0.5 * (CURVATURE[0] * sd_lr**2 + CURVATURE[1] * sd_batch**2)


def compute_share(uncertainty: Uncertainty) -> float:
    """What that excess costs: the share of the target's compute that would make up for it.

    At the prior's shares a per cent of compute, half of it in size and half in tokens, lowers ln loss by 3e-4.
    """
    elasticity = 0.5 * (SHARES[1] * EXPONENTS[0] + SHARES[2] * EXPONENTS[1])
    return math.expm1(min(float(excess(uncertainty.lr, uncertainty.batch)) / elasticity, 50.0))


def _cell_lr(row: Array, cell: Sequence[Run]) -> Array:
    """Information of one cell about (a₀, a₁, a₂, offset of found rates); the cell's own distance is integrated out."""
    rows, errors = [], []
    found = [r for r in cell if r.strategy == SELF_TUNING]
    if found:
        rows.append([*row, 1.0])
        errors.append(
            FOUND_SCATTER**2 * (0.5 + 0.5 / len(found))
        )  # half of it is the cell's, whatever the seed
    counts = Counter(r.batch for r in cell if r.strategy != SELF_TUNING)
    scheduled = max(counts.values(), default=0)
    if scheduled > 1:
        rows.append([*row, 0.0])
        errors.append(RUN_ERROR**2 / (scheduled - 1))
    if not rows:
        return np.zeros((4, 4))
    design = np.array(rows)
    covariance = np.diag(errors) + CELL_SCATTER**2
    return np.asarray(design.T @ np.linalg.solve(covariance, design))


def prior_rise(size: float, tokens: float, target: tuple[float, float]) -> float:
    """ln of how much more loss the prior's means give at (size, tokens) than at the target."""
    return math.log(sum(_terms(math.log(size / target[0]), math.log(tokens / target[1]))))


def _terms(n: float, d: float) -> tuple[float, float, float]:
    """E, A·N^-α and B·D^-β at the prior's means, in units of the target's loss."""
    return SHARES[0], SHARES[1] * math.exp(-EXPONENTS[0] * n), SHARES[2] * math.exp(-EXPONENTS[1] * d)


def _floor_row(n: float, d: float) -> Array:
    """∂ ln loss / ∂ (ln E, ln A, ln B, α, β) at the prior's means."""
    e, a, b = _terms(n, d)
    return np.array([e, a, b, -a * n, -b * d]) / (e + a + b)
