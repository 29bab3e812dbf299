"""What a law's size counts: several columns may say how large a model is, and ordered validation chooses one.

Parameters with or without embeddings, active or in total: which of them the optimal lr and batch follow is a question
to the trials. Each count is fitted on smaller sizes and scored on the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metaopt_hpo.scaling.estimates import Caution
from metaopt_hpo.scaling.fitting.cells import Cells
from metaopt_hpo.scaling.fitting.floor_fit import fit_floor
from metaopt_hpo.scaling.fitting.ordered import measure_trust, splits
from metaopt_hpo.scaling.fitting.pointfit import PointFit, point_fitter
from metaopt_hpo.scaling.fitting.told import Told
from metaopt_hpo.trials import settings
from metaopt_hpo.trials.table import TrialTable

OWN = "size"
"""The table's own count."""

TIED = 2e-4
"""Held-out excess loss by which one count must be better to be chosen for its lr; within it the loss decides."""

SAME_ERROR = 1e-4
"""Difference of errors of ln loss within which two counts, such as two in proportion, predict it alike."""


@dataclass(frozen=True)
class Support:
    """How well a count predicts the next sizes: mean excess at the predicted lr and batch, and rms error of ln loss."""

    excess: float
    loss: float


def counted(table: TrialTable, name: str) -> TrialTable:
    """The table with this hyperparameter as its size.

    Raises:
        ValueError: it is missing, or no positive number, in some trial.
    """
    if name == OWN:
        return table
    told = Told(table, table.frame["strategy"].to_numpy())
    found = [settings.find(told.params(i), name) for i in range(len(table))]
    values = np.array([v if isinstance(v, (int, float)) else math.nan for v in found], dtype=float)
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        raise ValueError(
            f"size={name!r} must be a positive number in every trial; {int(bad.sum())} of {bad.size} have none"
        )
    return TrialTable(table.frame.assign(size=values), table.notes)


def support(cells: Cells) -> Support:
    """By ordered validation along size; infinite where no next size can be predicted."""
    fit = point_fitter(None)
    trust = measure_trust(cells, "size", fit)
    excess = trust.scores[0] if trust.scores else math.inf
    errors = [e for train, test in splits(cells.cell_size, 2) for e in _loss_errors(cells, train, test, fit)]
    return Support(excess, float(np.sqrt(np.mean(np.square(errors)))) if errors else math.inf)


def _loss_errors(
    cells: Cells,
    train: np.ndarray,
    test: np.ndarray,
    fit: Callable[[Cells], PointFit | None],
) -> list[float]:
    """ln loss of each held-out cell's best run less what the smaller sizes predict."""
    below = cells.subset(train)
    fitted = fit(below)
    if fitted is None:
        return []
    names = fitted.axes.scale_names or ("size",)
    if below.k < 2 + len(names):
        return []
    size, tokens = np.log(below.cell_size), np.log(below.cell_tokens)
    floor = fit_floor(names, size, tokens, fitted.floors, below.cell_weight(), noise=fitted.scale)
    out = []
    for j in np.flatnonzero(test):
        at = float(cells.cell_size[j]), float(cells.cell_tokens[j])
        out.append(float(cells.z[cells.cell == j].min()) - float(floor.log_loss(*at)))
    return out


def choose(supports: Mapping[str, Support], names: Sequence[str]) -> tuple[str, Caution]:
    """The better-supported count, and a sentence that names it.

    Args:
        supports: of each.
        names: in the caller's order, which breaks ties.
    """
    least = min(s.excess for s in supports.values())
    if math.isinf(least):
        message = (
            f"size counts {names[0]!r}, the first that was named: too few sizes to say which count predicts held-out "
            "next sizes best"
        )
        return names[0], Caution("size-counts", message)
    close = [n for n in names if supports[n].excess <= least + TIED]
    error = min(supports[n].loss for n in close)
    alike = [n for n in close if supports[n].loss <= error + SAME_ERROR]
    chosen = alike[0]
    said = "; ".join(
        f"{n}: excess {100 * supports[n].excess:.2g} %, loss off by {100 * supports[n].loss:.2g} %"
        for n in names
    )
    how = "predicts held-out next sizes better"
    if len(alike) > 1:
        how = f"predicts held-out next sizes as well as {', '.join(map(repr, alike[1:]))}"
    message = f"size counts {chosen!r}, which {how} ({said}): ask for sizes in it"
    return chosen, Caution("size-counts", message)
