"""How well a law predicts trials that it was not fitted to, in lines that people can read."""

from __future__ import annotations

import numpy as np

from metaopt_hpo.comparison.scoring import cells_of
from metaopt_hpo.scaling import Law
from metaopt_hpo.trials.table import TrialTable


def predicted_and_found(law: Law, table: TrialTable) -> str:
    """One line a cell of `table`: lr and batch predicted and found, excess loss there, loss predicted and found.

    The excess is that of the predicted point over the cell's best run, interpolated between runs.
    """
    rows = [("size", "tokens", "lr", "best", "batch", "best", "excess", "loss", "best")]
    excess, inside = [], []
    for (size, tokens), grid in cells_of(table).items():
        p = law.predict(size, tokens)
        excess.append(grid.excess(float(p.lr), float(p.batch)))
        inside.append(grid.best in p.loss)
        rows.append(
            (
                f"{size:.4g}",
                f"{tokens:.4g}",
                f"{p.lr.value:.3g}",
                f"{grid.best_lr:.3g}",
                f"{p.batch.value:.3g}",
                f"{grid.best_batch:.3g}",
                f"{100 * excess[-1]:.2f} %",
                f"{p.loss.value:.4f} ({p.loss.low:.4f} to {p.loss.high:.4f})",
                f"{grid.best:.4f}{'' if inside[-1] else ', outside'}",
            )
        )
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(v.ljust(w) for v, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    lines.append(
        f"excess loss {100 * float(np.mean(excess)):.2f} % on average, {100 * max(excess):.2f} % at most; "
        f"{sum(inside)} of {len(inside)} best losses inside their {law.level:.0%} interval"
    )
    return "\n".join(lines)
