"""Which trials of a table a law reads, and what they say of further coordinates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from metaopt_hpo.scaling.estimates import Caution, LawRefused
from metaopt_hpo.scaling.fitting.cells import Cells, make_cells, thin
from metaopt_hpo.scaling.fitting.told import Told
from metaopt_hpo.trials import settings
from metaopt_hpo.trials.table import TrialTable

Use = Literal["fixed", "plateau", "all"]


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
        extra: names of hyperparameters (in `params`) that are further coordinates of the optimum, in numbers or in
            words. One of `settings.TEXT` that varies and is not named is not mixed: the most frequent value is fitted.

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
    elif use == "fixed" and ok.any() and "schedule" not in extra:
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
    told = Told(table, strategies)
    for name in settings.TEXT:
        ok &= told.alone(name, ok, extra, cautions)
    if not ok.any():
        raise LawRefused(
            "few-trials", "no completed trial with a finite loss and a usable lr is in the table"
        )
    if (loss[ok] <= 0).any():
        n = int((loss[ok] <= 0).sum())
        raise LawRefused(
            "loss", f"{n} trials have a loss that is not positive; give a loss such as 1 − accuracy instead"
        )
    further, levels = told.further(ok, extra, cautions)
    cells = make_cells(
        f["size"].to_numpy(dtype=float)[ok],
        f["tokens"].to_numpy(dtype=float)[ok],
        f["batch"].to_numpy(dtype=float)[ok],
        lr[ok],
        loss[ok],
        further,
    )
    return thin(replace(cells, cautions=tuple(cautions), row=np.flatnonzero(ok)[cells.row], levels=levels))
