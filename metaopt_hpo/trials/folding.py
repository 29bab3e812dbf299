"""The reports of each run as one row: its end, its curve, and how it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from metaopt_hpo.trials.record import REACHED
from metaopt_hpo.trials.schema import Note


@dataclass(frozen=True)
class Reports:
    """How the rows of a table are reports of runs.

    Attributes:
        counter: name of what counts the reports.
        key: the run of each row.
        at: how far the run had come, in the counter's own terms.
        seen: tokens seen at each row; None where the table only says how many are planned.
        even: equal parts of the counter are equal numbers of tokens: it counts steps or epochs. A report's number need
            not, so that there is no curve.
        by_clock: the counter is a time, which says nothing of the tokens seen.
        sparse, lr_is_set: see `reports.fold`.
    """

    counter: str
    key: pd.Series
    at: np.ndarray
    seen: np.ndarray | None
    even: bool
    by_clock: bool
    sparse: bool
    lr_is_set: bool


FIELDS = ("tokens", "target_tokens", "loss", "lr", "state", "reason", "seconds", "curve_tokens", "curve_loss")
"""Columns that a run's reports decide together; the others are those of its last evaluated report."""


@dataclass
class _Run:
    """One run's rows, in order, and what they say together."""

    tokens: np.ndarray
    target: np.ndarray
    loss: np.ndarray
    lr: np.ndarray
    at: np.ndarray
    seen: np.ndarray | None
    longest: float
    sparse: bool

    @property
    def lost(self) -> bool:
        """Whether the loss stopped being finite, and did not come back."""
        if self.sparse:
            told = np.flatnonzero(~np.isnan(self.loss))
            return bool(told.size) and not math.isfinite(self.loss[told[-1]])
        finite = np.flatnonzero(np.isfinite(self.loss))
        return bool(finite.size) and finite.size == finite[-1] + 1 < self.loss.size

    @property
    def last(self) -> int:
        """Position of the report that says how the run stands."""
        told = np.flatnonzero(np.isfinite(self.loss))
        return self.loss.size - 1 if self.lost or not told.size else int(told[-1])

    @property
    def planned(self) -> float:
        """Tokens it was planned for; NaN where nothing says so."""
        target = self.target[self.last]
        if math.isfinite(target):
            return float(target)
        if self.seen is None:
            return float(self.tokens[self.last])
        fixed = np.ptp(self.tokens) == 0 and self.tokens[-1] >= REACHED * np.nanmax(self.seen, initial=0.0)
        return float(self.tokens[-1]) if fixed and self.tokens[-1] > 0 else math.nan

    def points(self) -> np.ndarray:
        """Tokens at each report; where only the plan is known, its share of the longest run's progress."""
        if self.seen is not None:
            return self.seen
        return self.planned * self.at / self.longest if self.longest > 0 else np.full(self.at.size, math.nan)

    def end(self) -> float:
        """Tokens at its end."""
        points = self.points()
        if np.isfinite(points[-1]):
            return float(points[-1])
        known = points[np.isfinite(points)]
        return float(known[-1]) if known.size else self.planned


def folded(frame: pd.DataFrame, reports: Reports, notes: list[Note]) -> pd.DataFrame:
    """One row a run. What was done is said in `notes`."""
    order, names = pd.factorize(reports.key.to_numpy())
    at = reports.at.copy()
    if (
        reports.counter.rsplit("/", 1)[-1] == "epoch"
        and np.nanmin(at) == 0
        and (np.nan_to_num(at) % 1 == 0).all()
    ):
        at += 1  # an epoch's row is written at its end
    index = np.lexsort((np.arange(len(frame)), at, order))
    index = index[np.isfinite(at[index]) | (np.bincount(order)[order[index]] == 1)]
    same = np.zeros(index.size, dtype=bool)
    same[:-1] = (order[index][:-1] == order[index][1:]) & (at[index][:-1] == at[index][1:])
    index, again = index[~same], int(same.sum())  # a report that was made again replaces the former one
    longest = _longest(frame, order, at) if not reports.by_clock else np.zeros(len(frame))
    starts = np.flatnonzero(np.diff(order[index], prepend=-1))
    columns = {c: frame[c].to_numpy() for c in (*FIELDS[:7],)}
    values: dict[str, list[object]] = {c: [] for c in FIELDS}
    keep: list[int] = []
    early = changed = 0
    for rows in np.split(index, starts[1:]):
        run = _Run(
            tokens=columns["tokens"][rows],
            target=columns["target_tokens"][rows],
            loss=columns["loss"][rows],
            lr=columns["lr"][rows],
            at=at[rows],
            seen=None if reports.seen is None else reports.seen[rows],
            longest=float(longest[rows[0]]),
            sparse=reports.sparse,
        )
        state, reason = columns["state"][rows[-1]], columns["reason"][rows[-1]]
        tokens, planned = run.end(), run.planned
        if run.lost and state in ("complete", "pruned", "stopped"):
            state, reason = "diverged", "its loss is not finite from some report on"
        elif state == "complete" and math.isfinite(planned) and tokens < REACHED * planned:
            early += 1
            state = "pruned"
            reason = "its last report is before its planned tokens"
        lr = run.lr[np.isfinite(run.lr)]
        if lr.size and np.ptp(lr) > 1e-9 * lr.max():
            changed += 1
            if reports.lr_is_set and state == "complete":
                state, reason = "stopped", "its lr was set anew while it ran, so that it has no lr of its own"
        points = run.points() if reports.even or reports.seen is not None else np.full(rows.size, math.nan)
        usable = np.isfinite(points) & np.isfinite(run.loss) & (points > 0)
        curve_tokens, first = np.unique(points[usable], return_index=True)
        keep.append(int(rows[run.last]))
        for name, value in zip(
            FIELDS,
            (
                tokens,
                planned,
                float(run.loss[run.last]),
                float(lr.max()) if lr.size else math.nan,
                state,
                reason,
                float(columns["seconds"][rows[-1]]),
                tuple(map(float, curve_tokens)) or None,
                tuple(map(float, run.loss[usable][first])) or None,
            ),
            strict=True,
        ):
            values[name].append(value)
    out = frame.iloc[keep].reset_index(drop=True)
    for name, column in values.items():
        if isinstance(column[0], float):
            out[name] = np.array(column)
        else:
            filled = np.empty(len(column), dtype=object)
            for i, value in enumerate(column):
                filled[i] = value
            out[name] = filled
    if (out["trial"] == "").all() and reports.key.dtype == object:
        out["trial"] = [str(name).rsplit("\0", 1)[-1] for name in names[order[index][starts]]]
    message = (
        f"{len(frame)} rows are reports of {len(out)} runs ({reports.counter!r} counts them): each run's end was kept, "
        "and its curve"
    )
    if again:
        message += f"; {again} reports were made again, and the later ones kept"
    if early:
        message += f"; {early} runs ended before their planned tokens"
    if changed:
        what = (
            "was set anew in them, and no law uses them"
            if reports.lr_is_set
            else "changes, and the largest that was logged was taken"
        )
        message += f"; the lr of {changed} runs {what}"
    notes.append(Note("reports", len(frame), message))
    return out


def _longest(frame: pd.DataFrame, order: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Of each row, how far the longest run of its plan came, in the counter's own terms."""
    work = pd.DataFrame(
        {"run": order, "at": at, "size": frame["size"], "tokens": frame["tokens"], "batch": frame["batch"]}
    )
    same = ["run"] if (work.groupby("run")["tokens"].nunique() > 1).any() else ["size", "tokens", "batch"]
    return work.groupby(same, dropna=False)["at"].transform("max").to_numpy(dtype=float)
