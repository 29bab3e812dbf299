"""How often the bands of `watch` hold: large runs of the ladder, at each of their reports, from small runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from metaopt_hpo.plan.band import band
from metaopt_hpo.trials.record import TrialRecord
from studies.ladder.judge import Cell
from studies.section import Section

SMALL = 6.0
"""Ratio of a run's size to its pilots', at the least."""

BEST = 3
"""Schedule runs a cell that are its pilots, the best ones: a plan's pilots lie about the law's lr."""


def held(table: Sequence[Cell]) -> Section:
    """Reports within their 90 % band, by the part of the run they are of."""
    counts: dict[str, list[tuple[bool, float]]] = {}
    for cell in table:
        for run in (cell.own, min(cell.grid, key=lambda r: r.loss)):
            pilots = _pilots(cell, table)
            for tokens, loss in zip(run.curve.tokens, run.curve.loss, strict=True) if run.curve else ():
                found = band(replace(run, tokens=tokens, loss=loss, study="target"), pilots)
                if found is not None:
                    at = (found.holds(loss), math.log(found.high / found.low))
                    counts.setdefault(_part(tokens / run.planned_tokens), []).append(at)
    section = Section(
        "Reports of a large run within the band that small runs predict",
        ("part of the run", "reports", "in the 90 % band", "mean width, ln loss"),
        note=f"Runs of at least {SMALL:g} times their pilots' size, the best of WSD and MetaOptimize's. The two errors "
        "of the model in metaopt_hpo/plan/band.py were chosen on this table.",
    )
    for part in [p for p in ("first quarter", "later", "end") if p in counts]:
        inside = [h for h, _ in counts[part]]
        widths = [w for _, w in counts[part]]
        section.rows.append(
            (part, str(len(inside)), f"{sum(inside) / len(inside):.0%}", f"{sum(widths) / len(widths):.2f}")
        )
    return section


def _part(share: float) -> str:
    return "first quarter" if share < 0.25 else "later" if share < 0.999 else "end"


def _pilots(cell: Cell, table: Sequence[Cell]) -> list[TrialRecord]:
    small = [
        c for c in table if c.seed == cell.seed and c.size * SMALL <= cell.size and c.tokens <= cell.tokens
    ]
    runs = [r for c in small for r in (c.own, *sorted(c.grid, key=lambda r: r.loss)[:BEST])]
    return [replace(r, study=f"pilot {i}") for i, r in enumerate(runs)]
