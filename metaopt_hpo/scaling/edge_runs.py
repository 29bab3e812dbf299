"""Which runs of a table diverged, and the edge of stability that they show about a law."""

from __future__ import annotations

import numpy as np

from metaopt_hpo.scaling.fitting.cells import Cells
from metaopt_hpo.scaling.fitting.oddities import exploded
from metaopt_hpo.scaling.forms.edge import Edge, fit_edge
from metaopt_hpo.scaling.forms.surface import Array
from metaopt_hpo.scaling.law import Law
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
    if not (bad.any() or lost.any()):
        return None
    size, tokens, batch, lr = (v[lost] for v in columns)
    known = cells.extra if set(cells.extra) == set(law.axes.defaults) else {}
    u, v, t = _from_law(law, cells.size, cells.tokens, cells.y, cells.x, known)
    u2, v2, t2 = _from_law(law, size, tokens, np.log(batch), np.log(lr), {})
    diverged = np.concatenate([bad, np.ones(size.size, dtype=bool)])
    return fit_edge(np.concatenate([u, u2]), np.concatenate([v, v2]), np.concatenate([t, t2]), diverged)


def _from_law(
    law: Law, size: Array, tokens: Array, log_batch: Array, log_lr: Array, extra: dict[str, Array] | object
) -> tuple[Array, Array, Array]:
    """(ln lr and ln batch from the law's optimum, the law's axes of scale)."""
    row = law.axes.design(size, tokens, extra if isinstance(extra, dict) else None)
    x, y = law.surface.centre(row)
    v = (log_batch - y) if law.surface.has_batch else np.zeros_like(log_batch)
    return log_lr - x, v, row[:, 1 : 1 + len(law.axes.scale_names)]
