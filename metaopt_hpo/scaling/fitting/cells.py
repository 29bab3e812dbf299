"""Trials as arrays grouped by cell: all runs of one size and number of tokens. What a fit reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.scaling.estimates import Caution
from metaopt_hpo.scaling.sameness import group

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Cells:
    """Usable trials, sorted by cell. Arrays of one value a trial unless said.

    Attributes:
        row: where the trial stands in the table it came from.
        x, y, z: ln lr, ln batch, ln loss.
        size, tokens: of each trial.
        cell: index of the trial's cell in `cell_size`, `cell_tokens` (one value a cell).
        extra: further hyperparameters of each trial, by name; constant within a cell; words as their index in `levels`.
        levels: values of each setting in words, the most frequent first; also of those that are the same in all trials.
    """

    x: Array
    y: Array
    z: Array
    size: Array
    tokens: Array
    cell: NDArray[np.intp]
    cell_size: Array
    cell_tokens: Array
    row: NDArray[np.intp]
    extra: Mapping[str, Array] = field(default_factory=dict)
    cautions: tuple[Caution, ...] = ()
    levels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

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
            self.row[rows],
            {k: v[rows] for k, v in self.extra.items()},
            self.cautions,
            self.levels,
        )

    def runs(self, keep: NDArray[np.bool_]) -> Cells:
        """The runs marked in `keep` (one boolean a run), of which every cell must have one."""
        return replace(
            self,
            x=self.x[keep],
            y=self.y[keep],
            z=self.z[keep],
            size=self.size[keep],
            tokens=self.tokens[keep],
            cell=self.cell[keep],
            row=self.row[keep],
            extra={k: v[keep] for k, v in self.extra.items()},
        )

    def cell_weight(self) -> Array:
        """What a cell's floor counts for: its runs over ten, at most 1."""
        return np.minimum(np.bincount(self.cell, minlength=self.k), 10.0) / 10.0

    def cell_extra(self) -> dict[str, Array]:
        """Each further hyperparameter, one value a cell."""
        first = np.searchsorted(self.cell, np.arange(self.k))
        return {name: v[first] for name, v in self.extra.items()}


def make_cells(
    size: Array, tokens: Array, batch: Array, lr: Array, loss: Array, extra: Mapping[str, Array] | None = None
) -> Cells:
    """Group trials into cells; sizes (or tokens) that are the same (`scaling.sameness`) count as equal."""
    s, t = group(size), group(tokens)
    extra = extra or {}
    keys, index = np.unique(np.column_stack([s, t, *extra.values()]), axis=0, return_inverse=True)
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
        order,
        {k: v[order] for k, v in extra.items()},
    )


MAX_RUNS = 10_000
"""Runs beyond which a fit learns nothing more but takes minutes; larger tables are thinned evenly within cells."""


def thin(cells: Cells, limit: int = MAX_RUNS) -> Cells:
    """At most about `limit` runs, evenly from every cell whatever their loss; says how many were left out."""
    if cells.n <= limit:
        return cells
    count = np.bincount(cells.cell, minlength=cells.k)
    share = int(np.sort(count)[::-1][0])
    low, high = 1, share
    while low < high:  # largest equal cap on cells that keeps within the limit
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(count, middle).sum() <= limit else (low, middle - 1)
    keep = np.zeros(cells.n, dtype=bool)
    start = np.concatenate([[0], np.cumsum(count)[:-1]])
    rng = np.random.default_rng(0)
    for first, size in zip(start, count, strict=True):
        keep[first + rng.permutation(size)[:low]] = True
    caution = Caution(
        "thinned",
        f"{cells.n - int(keep.sum())} of {cells.n} trials were left out of the fit, evenly from all cells",
    )
    return replace(cells.runs(keep), cautions=(*cells.cautions, caution))
