"""Tables as races see them: any configuration in the box can be run, and a run of the target has a curve.

A configuration outside what a cell knows is run at the nearest one it knows, and its record says so. Where all runs of
a cell have curves with common token counts, these are interpolated like the losses; else a run's lower fidelities are
the cells of the same size at fewer tokens (`TableObjective`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from metaopt_hpo.comparison.objective import Configuration, Report, no_report
from metaopt_hpo.comparison.table_objective import TableObjective
from metaopt_hpo.scaling.fitting.grid import CellGrid
from metaopt_hpo.scaling.sameness import all_same, at_least
from metaopt_hpo.trials.record import Curve, TrialRecord
from metaopt_hpo.trials.table import TrialTable


class ReplayedObjective(TableObjective):
    """`TableObjective` that runs the nearest configuration it knows, at the cost the table measured."""

    def __init__(self, table: TrialTable, *, name: str = "table") -> None:
        super().__init__(table, name=name)
        frame = table.frame
        sizes, per_token = frame["size"].to_numpy(dtype=float), table.costs() / frame["tokens"]
        self._per_token = {s: float(np.median(per_token[all_same(sizes, s)])) for s in self.sizes}
        self._curve_grids: dict[tuple[float, float], list[tuple[float, CellGrid]]] = {}
        for cell in self.cells:
            curves = {k: c for k, c in self._curves.items() if k[:2] == cell}
            if curves:
                self._curve_grids[cell] = _curve_grids(curves)

    def cost(self, configuration: Configuration) -> float:
        """FLOPs as measured for this size, else 6·N·D."""
        return self._per_token[configuration.size] * configuration.tokens

    def rungs(self, size: float, tokens: float) -> tuple[float, ...]:
        """Token counts at which a run of this cell reports before its end."""
        if (size, tokens) in self._curve_grids:
            return tuple(t for t, _ in self._curve_grids[size, tokens] if not at_least(t, tokens))
        return self.fidelities(size, tokens)[:-1]

    def run(self, configuration: Configuration, report: Report = no_report) -> TrialRecord:
        """Replay the nearest known run; the record holds its lr and batch."""
        c = configuration
        lr, batch = self.grid(c.size, c.tokens).clip(c.lr, c.batch)
        record = super().run(replace(c, lr=lr, batch=batch), report)
        return replace(record, cost=self._per_token[c.size] * record.tokens)

    def _points(self, c: Configuration) -> Sequence[tuple[float, float]]:
        grids = self._curve_grids.get((c.size, c.tokens))
        if grids is None:
            return super()._points(c)
        points = [(t, g.at(*g.clip(c.lr, c.batch))) for t, g in grids if not at_least(t, c.tokens)]
        return [(t, v) for t, v in points if math.isfinite(v)]


def _curve_grids(curves: Mapping[tuple[float, float, float, float], Curve]) -> list[tuple[float, CellGrid]]:
    """(tokens, losses over lr and batch) at every token count that all curves of a cell share."""
    by_tokens: dict[float, list[tuple[float, float, float]]] = {}
    for (_, _, lr, batch), curve in curves.items():
        for t, v in zip(curve.tokens, curve.loss, strict=True):
            if math.isfinite(v):
                by_tokens.setdefault(t, []).append((lr, batch, v))
    return [
        (t, CellGrid(*np.array(rows).T)) for t, rows in sorted(by_tokens.items()) if len(rows) == len(curves)
    ]
