"""Tables that other tools wrote: Weights & Biases exports (CSV of the runs table, JSON of runs with history).

Optuna studies and Ray results come through their plugins. Plain CSV, Parquet and JSON with other column names
need no reader: `TrialTable.read(path, columns={...}, units={...})`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from metaopt_hpo.trials.schema import REQUIRED, TableError
from metaopt_hpo.trials.table import TrialTable

WANDB_STATES = {
    "finished": "complete",
    "crashed": "failed",
    "failed": "failed",
    "killed": "pruned",
    "preempted": "failed",
    "preempting": "running",
    "running": "running",
    "pending": "running",
}
"""What a W&B run state means here; `killed` is a person's or a sweep's decision to stop."""

_NAMES = {
    "ID": "trial",
    "id": "trial",
    "Name": "name",
    "State": "state",
    "state": "state",
    "Runtime": "seconds",
}


def read_wandb(
    path: str | os.PathLike[str],
    columns: Mapping[str, str | float],
    *,
    units: Mapping[str, float | str] | None = None,
    sequence_length: float | None = None,
    history: Mapping[str, str] | None = None,
) -> TrialTable:
    """A Weights & Biases export as a table.

    Args:
        path: `.csv`, the runs table's export, one row a run; or `.json`/`.jsonl`, a list (or lines) of runs with
            `config`, `summary` and perhaps `history`, as the public API gives them.
        columns: our name → W&B's, or a number; size, tokens, batch, lr and loss that are named so need
            no entry. Names of nested values are joined by dots ("config.optimizer.lr", or
            "optimizer.lr": config is searched first, then summary).
        units: as `TrialTable.from_frame`.
        sequence_length: tokens in a sequence.
        history: for JSON with histories: {"tokens": key, "loss": key}, which become the run's curve.

    Returns:
        Runs with their state: finished → complete, crashed and failed → failed, killed → pruned. Every other
        config value or CSV column becomes a hyperparameter.

    Raises:
        TableError: not such an export, or a run lacks a column.
    """
    path = Path(path)
    if not path.is_file():
        raise TableError(f"there is no export at {str(path)!r}")
    if path.suffix == ".csv":
        try:
            frame = pd.read_csv(path)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as e:
            raise TableError(f"cannot read {str(path)!r} as CSV: {str(e).splitlines()[0]}") from e
        frame = _csv_names(frame, columns)
    elif path.suffix in {".json", ".jsonl"}:
        frame = pd.DataFrame([_flat(run, history) for run in _runs(path)])
        if frame.empty:
            raise TableError(f"the export {str(path)!r} holds no runs")
        frame = frame.dropna(axis="columns", how="all")
        named = {k: k for k in REQUIRED} | dict(columns)
        columns = {k: _find(v, frame, k) if isinstance(v, str) else v for k, v in named.items()}
        frame = _without_duplicated_summary(frame, columns)
    else:
        raise TableError(f"cannot read {path.name!r}: a W&B export is .csv, .json or .jsonl")
    if "state" in frame:
        known = frame["state"].astype(str).str.lower()
        unknown = sorted(set(known) - set(WANDB_STATES) - {"complete", "pruned", "diverged"})
        if unknown:
            raise TableError(f"run state {unknown[0]!r} is unknown; known are {', '.join(WANDB_STATES)}")
        frame["state"] = [WANDB_STATES.get(s, s) for s in known]
        frame = _reachable(frame, columns)
    frame["engine"] = "wandb"
    return TrialTable.from_frame(frame, columns, units=units, sequence_length=sequence_length)


def _csv_names(frame: pd.DataFrame, columns: Mapping[str, str | float]) -> pd.DataFrame:
    taken = {v for v in columns.values() if isinstance(v, str)} | set(columns)
    renames = {
        old: new
        for old, new in _NAMES.items()
        if old in frame.columns and old not in taken and new not in taken and new not in frame.columns
    }
    return frame.rename(columns=renames)


def _runs(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        data = (
            [json.loads(x) for x in text.splitlines() if x.strip()]
            if path.suffix == ".jsonl"
            else json.loads(text)
        )
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise TableError(f"cannot read {str(path)!r} as JSON: {e}") from e
    if isinstance(data, dict):
        data = data.get("runs", [data])
    if not isinstance(data, list) or not all(isinstance(r, dict) for r in data):
        raise TableError(f"{str(path)!r} must hold a list of runs, each with config and summary")
    return data


def _flat(run: dict[str, Any], history: Mapping[str, str] | None) -> dict[str, Any]:
    out: dict[str, Any] = {"trial": run.get("id", run.get("name", "")), "state": run.get("state", "finished")}
    for part in ("config", "summary", "summaryMetrics"):
        value = run.get(part, {})
        value = json.loads(value) if isinstance(value, str) else value
        out |= _nested("config" if part == "config" else "summary", value or {})
    points = run.get("history")
    if history is not None and points:
        if set(history) - {"tokens", "loss"} or len(history) != 2:
            raise ValueError(f"history must name 'tokens' and 'loss', got {dict(history)!r}")
        curve = [(p.get(history["tokens"]), p.get(history["loss"])) for p in points]
        kept = sorted({float(t): float(v) for t, v in curve if t is not None and v is not None}.items())
        out["curve_tokens"] = tuple(t for t, _ in kept) or None
        out["curve_loss"] = tuple(v for _, v in kept) or None
    return out


def _nested(prefix: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        if set(value) <= {"value", "desc"} and "value" in value:  # the API wraps config values
            return _nested(prefix, value["value"])
        out: dict[str, Any] = {}
        for k, v in value.items():
            if not str(k).startswith("_"):
                out |= _nested(f"{prefix}.{k}", v)
        return out
    if isinstance(value, (int, float, str, bool)):
        return {prefix: value}
    return {}


def _find(name: str, frame: pd.DataFrame, ours: str) -> str:
    for candidate in (name, f"config.{name}", f"summary.{name}"):
        if candidate in frame.columns:
            return candidate
    raise TableError(
        f"no run has {name!r} (for {ours!r}); there are {', '.join(map(str, frame.columns[:40]))}"
    )


def _without_duplicated_summary(frame: pd.DataFrame, columns: Mapping[str, str | float]) -> pd.DataFrame:
    """Config values under their own names; of the summary only what was asked for: it is outcome, not setting."""
    wanted = set(columns.values())
    drop = [c for c in frame.columns if str(c).startswith("summary.") and c not in wanted]
    frame = frame.drop(columns=drop)
    renames = {
        c: str(c).removeprefix("config.")
        for c in frame.columns
        if str(c).startswith("config.") and c not in wanted and str(c).removeprefix("config.") not in columns
    }
    return frame.rename(columns=renames)


def _reachable(frame: pd.DataFrame, columns: Mapping[str, str | float]) -> pd.DataFrame:
    """A run that ended before it logged tokens or a loss saw none, which is no error of the export's."""
    frame = frame.copy()
    ended = frame["state"].isin(["failed", "running", "pruned"])
    for ours, value in (("tokens", 0.0), ("loss", math.nan)):
        name = columns.get(ours, ours)
        if isinstance(name, str) and name in frame.columns and pd.api.types.is_numeric_dtype(frame[name]):
            empty = ended & frame[name].isna()
            frame[name] = np.where(empty, value, frame[name])
    return frame
