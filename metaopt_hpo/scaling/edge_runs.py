"""Which runs of a table diverged, and the edge of stability that they show about a law."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from metaopt_hpo.scaling.fitting.cells import Cells
from metaopt_hpo.scaling.fitting.oddities import exploded
from metaopt_hpo.scaling.fitting.told import Mask, Told
from metaopt_hpo.scaling.forms.axes import coordinate
from metaopt_hpo.scaling.forms.edge import Edge, fit_edge
from metaopt_hpo.scaling.forms.surface import Array
from metaopt_hpo.scaling.law import Law
from metaopt_hpo.trials import settings
from metaopt_hpo.trials.table import TrialTable


def edge_of(table: TrialTable, cells: Cells, law: Law) -> Edge | None:
    """The edge of stability; None where too few runs diverged to show one.

    Runs that ended diverged count, and those that went on with a loss far above the law; failed ones do not, for a full
    disk says nothing of a learning rate.

    Args:
        table: all trials.
        cells: the completed ones that the law was fitted to, exploded ones included.
        law: fitted to them.
    """
    bad = exploded(cells, law.axes, law.surface, law.cells["log_loss"], law.noise)
    f = table.frame
    used = set(f["strategy"].to_numpy().astype(str)[cells.row])
    planned = f["target_tokens"].to_numpy(dtype=float)
    tokens = np.where(planned > 0, planned, f["tokens"].to_numpy(dtype=float))
    columns = [f["size"].to_numpy(dtype=float), tokens, f["batch"].to_numpy(dtype=float)]
    columns.append(f["lr"].to_numpy(dtype=float))
    lost = (f["state"].to_numpy() == "diverged") & f["strategy"].astype(str).isin(used).to_numpy()
    for column in columns:
        lost &= np.isfinite(column) & (column > 0)
    extra: dict[str, Array] = {}
    if lost.any():
        lost, extra = _alike(Told(table, f["strategy"].to_numpy().astype(object)), cells, lost, law)
    if not (bad.any() or lost.any()):
        return None
    size, tokens, batch, lr = (v[lost] for v in columns)
    known = cells.extra if set(cells.extra) == set(law.axes.defaults) else {}
    u, v, t = _from_law(law, cells.size, cells.tokens, cells.y, cells.x, known)
    u2, v2, t2 = _from_law(law, size, tokens, np.log(batch), np.log(lr), extra)
    diverged = np.concatenate([bad, np.ones(size.size, dtype=bool)])
    return fit_edge(np.concatenate([u, u2]), np.concatenate([v, v2]), np.concatenate([t, t2]), diverged)


def _alike(told: Told, cells: Cells, lost: Mask, law: Law) -> tuple[Mask, dict[str, Array]]:
    """Which diverged runs the law speaks of, and their further coordinates.

    Left out are those with another schedule, optimizer or parametrisation than the runs it was fitted to, and those
    whose coordinate is unknown or was never completed with: where they stand from an optimum is not known.
    """
    rows, keep = np.flatnonzero(lost), np.ones(int(lost.sum()), dtype=bool)
    extra: dict[str, Array] = {}
    for name in law.axes.defaults:
        levels = law.axes.levels.get(name)
        if levels is None:
            found = [settings.find(told.params(i), name) for i in rows.tolist()]
            values = np.array([v if isinstance(v, (int, float)) else np.nan for v in found], dtype=float)
            with np.errstate(all="ignore"):
                keep &= np.isfinite(coordinate(name, values))
        else:
            words = told.words(name, rows, by_strategy=name == "schedule")
            values = np.array([levels.index(w) if w in levels else np.nan for w in words], dtype=float)
            keep &= np.isfinite(values)
        extra[name] = values
    for name in set(settings.TEXT) - set(law.axes.defaults):
        fitted = set(told.words(name, cells.row, by_strategy=False)) - {""}
        words = told.words(name, rows, by_strategy=False)
        keep &= np.array([not fitted or not w or w in fitted for w in words], dtype=bool)
    out = np.zeros_like(lost)
    out[rows[keep]] = True
    return out, {name: v[keep] for name, v in extra.items()}


def _from_law(
    law: Law, size: Array, tokens: Array, log_batch: Array, log_lr: Array, extra: Mapping[str, Array]
) -> tuple[Array, Array, Array]:
    """(ln lr and ln batch from the law's optimum, the law's axes of scale)."""
    row = law.axes.design(size, tokens, extra)
    x, y = law.surface.centre(row)
    v = (log_batch - y) if law.surface.has_batch else np.zeros_like(log_batch)
    return log_lr - x, v, row[:, 1 : 1 + len(law.axes.scale_names)]
