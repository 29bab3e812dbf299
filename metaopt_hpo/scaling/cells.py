"""Trials as arrays grouped by cell: all runs of one size and number of tokens. What a fit reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from metaopt_hpo.scaling.estimates import Caution, LawRefused
from metaopt_hpo.trials.table import TrialTable

Array = NDArray[np.float64]
Use = Literal["fixed", "plateau", "all"]

ADAPTIVE = frozenset(
    {"metaoptimize", "prodigy", "dog", "ldog", "d-adaptation", "mechanic", "momo", "gdtuo", "hypergradient"}
)
"""Strategies whose lr is only where the step size starts: their `lr` is no coordinate of the surface."""


@dataclass(frozen=True)
class Cells:
    """Usable trials, sorted by cell. Arrays of one value a trial unless said.

    Attributes:
        x, y, z: ln lr, ln batch, ln loss.
        size, tokens: of each trial.
        cell: index of the trial's cell in `cell_size`, `cell_tokens` (one value a cell).
        extra: (trials × extra coordinates), already transformed; `cell_extra` is its mean over each cell.
    """

    x: Array
    y: Array
    z: Array
    size: Array
    tokens: Array
    cell: NDArray[np.intp]
    cell_size: Array
    cell_tokens: Array
    cautions: tuple[Caution, ...] = ()

    @property
    def n(self) -> int:
        """Number of trials."""
        return self.x.size

    @property
    def k(self) -> int:
        """Number of cells."""
        return self.cell_size.size

    def subset(self, keep: NDArray[np.bool_]) -> Cells:
        """The cells marked in `keep` (one boolean a cell)."""
        rows = keep[self.cell]
        renumber = np.cumsum(keep) - 1
        return Cells(
            self.x[rows],
            self.y[rows],
            self.z[rows],
            self.size[rows],
            self.tokens[rows],
            renumber[self.cell[rows]],
            self.cell_size[keep],
            self.cell_tokens[keep],
            self.cautions,
        )


def make_cells(size: Array, tokens: Array, batch: Array, lr: Array, loss: Array) -> Cells:
    """Group trials into cells; sizes (or tokens) within 0.1 % of each other count as equal."""
    s, t = _snap(size), _snap(tokens)
    keys, index = np.unique(np.column_stack([s, t]), axis=0, return_inverse=True)
    index = index.reshape(-1)
    order = np.lexsort((loss, lr, batch, index))  # any order of the trials gives the same arrays
    return Cells(
        np.log(lr[order]),
        np.log(batch[order]),
        np.log(loss[order]),
        s[order],
        t[order],
        index[order],
        keys[:, 0],
        keys[:, 1],
    )


def _snap(values: Array, tolerance: float = 1e-3) -> Array:
    """Values within a relative tolerance of their neighbour get the group's median."""
    order = np.argsort(values, kind="stable")
    v = values[order]
    group = np.concatenate([[0], np.cumsum(np.diff(np.log(v)) > tolerance)])
    median = pd.Series(v).groupby(group).transform("median").to_numpy()
    out = np.empty_like(values, dtype=float)
    out[order] = median
    return out


def from_table(table: TrialTable, *, use: Use = "fixed", strategy: str | None = None) -> Cells:
    """The trials of `table` that a law may use.

    Args:
        table: any trials; those that did not complete, or whose loss is not finite, are left out and counted.
        use: "fixed" takes runs whose lr was set from outside; "plateau" takes runs of adaptive strategies at
            the step size they settled on (`plateau_lr`); "all" takes both.
        strategy: only runs of this strategy. By default, where several strategies of fixed lr are mixed, the
            one with most trials, for the optimal peak lr depends on the schedule.

    Raises:
        LawRefused: nothing usable remains, or losses are not positive.
    """
    if use not in ("fixed", "plateau", "all"):
        raise ValueError(f"use must be fixed, plateau or all, got {use!r}")
    f = table.frame
    cautions: list[Caution] = []
    loss = f["loss"].to_numpy(dtype=float)
    state = f["state"].to_numpy()
    ok = (state == "complete") & np.isfinite(loss)
    for name in ("diverged", "pruned", "failed", "running"):
        n = int((state == name).sum())
        if n:
            cautions.append(Caution(f"left-out-{name}", f"{n} {name} trials were left out of the fit"))
    strategies = f["strategy"].to_numpy().astype(object)
    plateau = f["plateau_lr"].to_numpy(dtype=float)
    adaptive = np.array([s in ADAPTIVE for s in strategies]) | (np.isfinite(plateau) & (plateau > 0))
    lr = f["lr"].to_numpy(dtype=float).copy()
    if use != "fixed":
        lr = np.where(adaptive, plateau, lr)
    wanted = {"fixed": ~adaptive, "plateau": adaptive, "all": np.ones_like(adaptive)}[use]
    wanted = wanted & np.isfinite(lr) & (lr > 0)
    if (ok & ~wanted).any():
        n = int((ok & ~wanted).sum())
        kind = "of adaptive strategies" if use == "fixed" else "without a usable plateau step size"
        cautions.append(
            Caution("left-out-strategy", f"{n} trials {kind} were left out of the fit (use={use!r})")
        )
    ok &= wanted
    if strategy is not None:
        ok &= strategies == strategy
        if not ok.any():
            known = ", ".join(sorted({repr(str(s)) for s in strategies}))
            raise LawRefused(
                "few-trials", f"no usable trial has strategy {strategy!r}; the table has {known}"
            )
    elif use == "fixed" and ok.any():
        names, counts = np.unique(strategies[ok].astype(str), return_counts=True)
        if names.size > 1:
            main = names[counts.argmax()]
            left = int(counts.sum() - counts.max())
            cautions.append(
                Caution(
                    "strategies-mixed",
                    f"only strategy {str(main)!r} was fitted; {left} trials of others were left out",
                )
            )
            ok &= strategies == main
    if not ok.any():
        raise LawRefused(
            "few-trials", "no completed trial with a finite loss and a usable lr is in the table"
        )
    if (loss[ok] <= 0).any():
        n = int((loss[ok] <= 0).sum())
        raise LawRefused(
            "loss", f"{n} trials have a loss that is not positive; give a loss such as 1 − accuracy instead"
        )
    cells = make_cells(
        f["size"].to_numpy(dtype=float)[ok],
        f["tokens"].to_numpy(dtype=float)[ok],
        f["batch"].to_numpy(dtype=float)[ok],
        lr[ok],
        loss[ok],
    )
    return Cells(**{**cells.__dict__, "cautions": tuple(cautions)})
