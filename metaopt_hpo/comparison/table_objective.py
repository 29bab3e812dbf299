"""TableObjective: trials looked up in a table of real runs instead of trained, so that searches replay in seconds.

Losses are interpolated between measured runs of one cell (one size and number of tokens), never outside them.
Where runs have no curves, the cells of the same size at fewer tokens are the lower fidelities: what an
annealed run of that length reached, which flatters pruning, for a run cut short would not have been annealed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metaopt_hpo.comparison.live import LiveReplay
from metaopt_hpo.comparison.objective import Configuration, ObjectiveError, Report, no_report
from metaopt_hpo.scaling.fitting.grid import CellGrid
from metaopt_hpo.scaling.sameness import at_least, group, same
from metaopt_hpo.trials.record import Curve, TrialRecord
from metaopt_hpo.trials.table import TrialTable


class TableObjective:
    """Looks configurations up in a table.

    Args:
        table: completed trials with finite losses count; repeated configurations are averaged over seeds.
        name: what the objective is called in records.

    Raises:
        ObjectiveError: the table has no completed trial, or a loss that is not positive.
    """

    def __init__(self, table: TrialTable, *, name: str = "table") -> None:
        self.name = name
        self.table = table
        frame = table.frame
        usable = (frame["state"] == "complete") & np.isfinite(frame["loss"])
        if not usable.any():
            raise ObjectiveError("the table has no completed trial to replay")
        frame = frame[usable]
        if (frame["loss"] <= 0).any():
            n = int((frame["loss"] <= 0).sum())
            raise ObjectiveError(
                f"{n} trials have a loss that is not positive, and excess is relative: give a loss such as 1 − accuracy"
            )
        sizes, tokens = (group(frame[c].to_numpy(dtype=float)) for c in ("size", "tokens"))
        frame = frame.assign(size=sizes, tokens=tokens)
        self._cells: dict[tuple[float, float], CellGrid] = {}
        self._curves: dict[tuple[float, float, float, float], Curve] = {}
        for (n, d), runs in frame.groupby(["size", "tokens"]):
            columns = [runs[c].to_numpy(dtype=float) for c in ("lr", "batch", "loss")]
            self._cells[float(n), float(d)] = CellGrid(*columns)
        with_curve = frame[frame["curve_tokens"].notna()]
        for record in TrialTable(with_curve).records() if len(with_curve) else ():
            if record.curve is not None:
                self._curves[record.size, record.tokens, record.lr, record.batch] = record.curve

    @property
    def sizes(self) -> tuple[float, ...]:
        """Sizes there are, ascending."""
        return tuple(sorted({s for s, _ in self._cells}))

    @property
    def cells(self) -> tuple[tuple[float, float], ...]:
        """(size, tokens) pairs there are, ascending."""
        return tuple(sorted(self._cells))

    def grid(self, size: float, tokens: float) -> CellGrid:
        """The measured losses of one cell.

        Raises:
            ObjectiveError: no such cell.
        """
        for (s, t), found in self._cells.items():
            if same(s, size) and same(t, tokens):
                return found
        known = ", ".join(f"{s:.4g}×{t:.4g}" for s, t in self.cells)
        raise ObjectiveError(
            f"the table has no cell of size {size:.4g} and {tokens:.4g} tokens; cells: {known}"
        )

    def fidelities(self, size: float, tokens: float) -> tuple[float, ...]:
        """Tokens of the cells of this size up to `tokens`, ascending."""
        return tuple(t for s, t in self.cells if same(s, size) and at_least(tokens, t))

    def cost(self, configuration: Configuration) -> float:
        """6·N·D FLOPs."""
        return 6.0 * configuration.size * configuration.tokens

    def loss(self, size: float, tokens: float, batch: float, lr: float) -> float:
        """The loss measured or interpolated at a configuration.

        Raises:
            ObjectiveError: no such cell, or the configuration lies outside its runs.
        """
        value = self.grid(size, tokens).at(lr, batch)
        if not math.isfinite(value):
            raise ObjectiveError(
                f"lr {lr:.4g} and batch {batch:.4g} lie outside the runs of size {size:.4g} and {tokens:.4g} tokens; "
                "a table knows nothing beyond what was run"
            )
        return value

    def run(self, configuration: Configuration, report: Report = no_report) -> TrialRecord:
        """Replay a run: report its lower fidelities in order, then its loss.

        Raises:
            ObjectiveError: no such configuration in the table.
        """
        c = configuration
        final = self.loss(c.size, c.tokens, c.batch, c.lr)
        seen: list[tuple[float, float]] = []
        reason: str | None = None
        for tokens, loss in self._points(c):
            seen.append((tokens, loss))
            reason = report(math.ceil(tokens), loss)
            if reason is not None:
                break
        stopped = reason is not None
        tokens, loss = seen[-1] if stopped else (c.tokens, final)
        if not stopped:
            seen.append((c.tokens, final))
        return c.record(
            tokens=tokens,
            loss=loss,
            workload=self.name,
            state="pruned" if stopped else "complete",
            reason=reason or "",
            cost=6.0 * c.size * tokens,
            curve=Curve(tuple(t for t, _ in seen), tuple(v for _, v in seen)),
        )

    @property
    def changes_lr(self) -> bool:
        """False: the table holds no run whose lr changed midway."""
        return False

    def stops_at(self, configuration: Configuration, tokens: float) -> float:
        """Tokens of the first row of the run's curve, or of the first cell that knows it, at or above `tokens`."""
        known = (t for t, _ in self._points(configuration) if at_least(t, tokens))
        return min(known, default=configuration.tokens)

    def open(self, configuration: Configuration, saved: Path | None = None) -> LiveReplay:
        """A replayed run that can be halted and gone on with; see `comparison.live`.

        Raises:
            ObjectiveError: no such configuration, or what was saved is another's.
        """
        return LiveReplay(self.run(configuration), saved)

    def _points(self, c: Configuration) -> Sequence[tuple[float, float]]:
        """(tokens, loss) before the end: the run's own curve, else the cells at fewer tokens that know it."""
        curve = self._curves.get((c.size, c.tokens, c.lr, c.batch))
        if curve is not None:
            pairs = zip(curve.tokens, curve.loss, strict=True)
            return [(t, v) for t, v in pairs if not at_least(t, c.tokens) and math.isfinite(v)]
        out = []
        for tokens in self.fidelities(c.size, c.tokens)[:-1]:
            value = self.grid(c.size, tokens).at(c.lr, c.batch)
            if math.isfinite(value):
                out.append((tokens, value))
        return out
