"""Trials as arrays grouped by cell: all runs of one size and number of tokens. What a fit reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from metaopt_hpo.scaling.estimates import Caution, LawRefused
from metaopt_hpo.scaling.sameness import group
from metaopt_hpo.trials.table import TrialTable

Array = NDArray[np.float64]
Use = Literal["fixed", "plateau", "all"]


@dataclass(frozen=True)
class Cells:
    """Usable trials, sorted by cell. Arrays of one value a trial unless said.

    Attributes:
        row: where the trial stands in the table it came from.
        x, y, z: ln lr, ln batch, ln loss.
        size, tokens: of each trial.
        cell: index of the trial's cell in `cell_size`, `cell_tokens` (one value a cell).
        extra: further hyperparameters of each trial, by name; constant within a cell.
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


def main_strategy(strategies: Iterable[str]) -> str:
    """The strategy with most trials, the first by name of several: the optimal peak lr depends on the schedule."""
    counts = Counter(strategies)
    return min(counts, key=lambda name: (-counts[name], name), default="")


def from_table(
    table: TrialTable, *, use: Use = "fixed", strategy: str | None = None, extra: Sequence[str] = ()
) -> Cells:
    """The trials of `table` that a law may use.

    Args:
        table: any trials; those that did not complete, or whose loss is not finite, are left out and counted.
        use: "fixed" takes runs whose lr was set from outside; "plateau" takes runs of adaptive strategies at
            the step size they settled on (`found_lr`); "all" takes both.
        strategy: only runs of this strategy. By default, where several strategies of fixed lr are mixed, the
            one with most trials, for the optimal peak lr depends on the schedule.
        extra: names of hyperparameters (in `params`) that are further coordinates of the optimum.

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
    for name in ("diverged", "stopped", "pruned", "failed", "running"):
        n = int((state == name).sum())
        if n:
            cautions.append(Caution(f"left-out-{name}", f"{n} {name} trials were left out of the fit"))
    strategies = f["strategy"].to_numpy().astype(object)
    plateau = f["found_lr"].to_numpy(dtype=float)
    tuning = f["tuning"].to_numpy().astype(str)
    found = np.isfinite(plateau) & (plateau > 0)
    adaptive = (tuning == "self") | ((tuning == "") & found)  # as `TrialRecord.self_tuning`
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
        main = main_strategy(strategies[ok].astype(str).tolist())
        others = ok & (strategies != main)
        if others.any():
            cautions.append(
                Caution(
                    "strategies-mixed",
                    f"only strategy {main!r} was fitted; {int(others.sum())} trials of others were left out",
                )
            )
            ok &= ~others
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
        _extras(table, ok, extra, cautions),
    )
    return thin(replace(cells, cautions=tuple(cautions), row=np.flatnonzero(ok)[cells.row]))


KNOWN_EXTRAS = ("weight_decay", "beta1", "beta2", "momentum", "width", "depth", "warmup", "dropout")


def _extras(table: TrialTable, ok: Array, names: Sequence[str], cautions: list[Caution]) -> dict[str, Array]:
    """Values of the further coordinates; a caution where a well-known one varies but was not named."""
    params = table.frame["params"].to_numpy()[ok]
    if not names and not any(
        n in text for text in params[:: max(params.size // 50, 1)] for n in KNOWN_EXTRAS
    ):
        return {}
    rows = [json.loads(p) for p in params]
    for name in KNOWN_EXTRAS:
        values = {r[name] for r in rows if isinstance(r.get(name), (int, float))}
        if name not in names and len(values) > 1:
            message = (
                f"{name} takes {len(values)} values in the table and is no coordinate of the law "
                f"(extra=({name!r},) makes it one)"
            )
            cautions.append(Caution("extra-varies", message))
    out: dict[str, Array] = {}
    for name in names:
        column = np.array(
            [r.get(name, np.nan) if not isinstance(r.get(name), str) else np.nan for r in rows], dtype=float
        )
        low, high = (0.0, 1.0) if name.startswith(("beta", "momentum")) else (0.0, np.inf)
        bad = ~((column > low) & (column < high))
        if bad.any():
            raise ValueError(
                f"extra coordinate {name!r} must be a number in ({low:g}, {high:g}) in every trial; "
                f"{int(bad.sum())} of {column.size} are not"
            )
        out[name] = column
    return out
