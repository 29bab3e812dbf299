"""The table of a study that keeps its runs in one Parquet file: read it, add a finished run, ask for rate and mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from metaopt_hpo.atomic import replacing


def read(path: Path, key: list[str]) -> pd.DataFrame:
    """What is kept so far; an empty table with the key's columns and a loss where there is no file."""
    return pd.read_parquet(path) if path.exists() else pd.DataFrame(columns=[*key, "held_out"])


def has(table: pd.DataFrame, wanted: Mapping[str, Any]) -> bool:
    """Whether a row has these values."""
    return not rows_of(table, **wanted).empty


def rows_of(table: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows with these values."""
    for name, value in wanted.items():
        table = table[table[name] == value]
    return table


def keep(path: Path, key: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Add a run, in place of one of the same key; the file is read again, as another process may have added to it."""
    table = read(path, list(key))
    row = pd.DataFrame([{**key, **found}])
    others = table[~(table[list(key)] == pd.Series(dict(key))).all(axis=1)]
    with replacing(path) as new:
        (pd.concat([others, row], ignore_index=True) if len(others) else row).to_parquet(new, index=False)


def best_rate(kept: pd.DataFrame) -> float | None:
    """Minimum of the parabola in ln lr through the best rate and its neighbours; None where the best is the last."""
    rows = kept.sort_values("lr")
    x, y = np.log(rows.lr.to_numpy(float)), np.log(rows.held_out.to_numpy(float))
    y = np.where(np.isfinite(y), y, np.inf)
    i = int(np.argmin(y)) if len(y) else 0
    if not 0 < i < len(y) - 1 or not np.isfinite(y[i - 1 : i + 2]).all():
        return None
    a, b, _ = np.polyfit(x[i - 1 : i + 2], y[i - 1 : i + 2], 2)
    return float(np.exp(-b / (2 * a)))


def mean_over_jobs(jobs: pd.Series[float], digits: int = 1) -> str:
    """Mean over jobs in per cent, with Student's 90 % interval where there are two or more."""
    if jobs.empty:
        return "–"
    mean = float(jobs.mean())
    if len(jobs) == 1:
        return f"{mean:+.{digits}f} %"
    half = float(stats.sem(jobs.to_numpy(float)) * stats.t.ppf(0.95, len(jobs) - 1))
    return f"{mean:+.{digits}f} % ({mean - half:+.{digits}f} to {mean + half:+.{digits}f})"
