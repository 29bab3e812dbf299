"""A table's completed runs as a law's figures take them: with the law's coordinates, and cell by cell."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from metaopt_hpo.scaling import Law
from metaopt_hpo.scaling.fitting.grid import CellGrid
from metaopt_hpo.trials import settings
from metaopt_hpo.trials.table import TrialTable


def completed(table: TrialTable) -> pd.DataFrame:
    """Runs with a finite loss that is a loss."""
    frame = table.frame
    mask = (frame["state"] == "complete") & (frame["loss"] > 0) & np.isfinite(frame["loss"])
    usable: pd.DataFrame = frame.loc[mask]
    return usable


def coordinates(law: Law, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """Each trial's further coordinates; the law's default where a trial has none."""
    if not law.axes.defaults:
        return {}
    rows = [(json.loads(text), str(s)) for text, s in zip(frame["params"], frame["strategy"], strict=True)]

    def of(name: str, default: float | str) -> np.ndarray:
        if not isinstance(default, str):
            found = [settings.find(p, name) for p, _ in rows]
            return np.array([default if v is None else v for v in found], dtype=float)
        words = [settings.setting(p, name, s) for p, s in rows]
        return np.array([w if w in law.axes.levels[name] else default for w in words])

    return {name: of(name, default) for name, default in law.axes.defaults.items()}


def at_defaults(law: Law, table: TrialTable) -> pd.DataFrame:
    """Completed trials at the law's defaults of further coordinates."""
    frame = completed(table)
    keep = np.ones(len(frame), dtype=bool)
    for name, values in coordinates(law, frame).items():
        default = law.axes.defaults[name]
        keep &= values == default if isinstance(default, str) else np.isclose(values, default, rtol=1e-6)
    return frame.loc[keep] if keep.any() else frame


def grids_of(frame: pd.DataFrame) -> dict[tuple[float, float], CellGrid]:
    """(size, tokens) → its runs."""
    out = {}
    for _, g in frame.groupby(["size", "tokens"]):
        size, tokens, lr, batch, loss = (
            g[c].to_numpy(dtype=float) for c in ("size", "tokens", "lr", "batch", "loss")
        )
        out[float(size[0]), float(tokens[0])] = CellGrid(lr, batch, loss)
    return out


def span(values: object) -> tuple[float, float]:
    """Least and largest of the positive ones."""
    v = np.asarray(values, dtype=float)
    v = v[np.isfinite(v) & (v > 0)]
    return float(v.min()), float(v.max())
