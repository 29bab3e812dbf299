"""How a run ended, in the words of other tools and of people."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

from metaopt_hpo.trials import schema
from metaopt_hpo.trials.record import REACHED
from metaopt_hpo.trials.schema import Note, TableError

STATES: dict[str, str] = {
    **{s: s for s in schema.STATES},
    # Optuna, W&B, MLflow, Ray, Slurm, people
    **dict.fromkeys(
        ("completed", "finished", "done", "success", "succeeded", "terminated", "ok", "end", "ended"), "complete"
    ),
    **dict.fromkeys(("early_stopped", "earlystopped", "early_stopping", "early_stop"), "stopped"),
    **dict.fromkeys(("prune", "killed", "canceled", "cancelled", "aborted", "interrupted"), "pruned"),
    **dict.fromkeys(
        ("fail", "failure", "error", "errored", "crashed", "crash", "oom", "out_of_memory", "preempted", "timeout",
         "node_fail", "infeasible"), "failed",
    ),
    **dict.fromkeys(("nan", "divergence", "exploded", "unstable"), "diverged"),
    **dict.fromkeys(
        ("preempting", "pending", "waiting", "scheduled", "paused", "queued", "created", "started", "in_progress"),
        "running",
    ),
}  # fmt: skip
"""What a state of Optuna, W&B, MLflow, Ray, Slurm or a person's table means here; `killed` is a decision to stop."""


def normalise(value: object) -> str:
    """`TrialState.COMPLETE`, "Early stopped" → "complete", "early_stopped"."""
    return re.sub(r"[^a-z0-9]+", "_", str(value).rsplit(".", 1)[-1].strip().lower()).strip("_")


def recognised(values: Iterable[object]) -> bool:
    """Whether most of a column's texts are states: a column that has its name by chance is none."""
    texts = [v for v in values if isinstance(v, str) and v.strip()]
    return bool(texts) and sum(normalise(v) in STATES for v in texts) * 2 > len(texts)


def read(values: pd.Series, source: str) -> np.ndarray:
    """A column of states as ours; rows without one count as complete.

    Raises:
        TableError: an unknown state; the message names its row.
    """
    cache: dict[object, str] = {}
    out = np.empty(len(values), dtype=object)
    for i, (row, v) in enumerate(zip(values.index, values.tolist(), strict=True)):
        if v is None or v is pd.NA or (isinstance(v, float) and np.isnan(v)) or v == "":
            out[i] = "complete"
            continue
        key = v if isinstance(v, str) else str(v)
        if key not in cache:
            found = STATES.get(normalise(v))
            if found is None:
                raise TableError(
                    f"row {row} of column {source!r} holds the state {v!r}, which is unknown; known are "
                    f"{', '.join(STATES)}"
                )
            cache[key] = found
        out[i] = cache[key]
    return out


def from_words(
    frame: pd.DataFrame, words: list[tuple[int, str]], notes: list[Note], meaning: dict[str, str]
) -> None:
    """Set the state of rows that hold "OOM", "diverged" or the like where a number should stand."""
    if not words:
        return
    state = frame["state"].to_numpy(dtype=object, copy=True)
    reason = frame["reason"].to_numpy(dtype=object, copy=True)
    for row, word in words:
        if state[row] == "complete":
            state[row] = meaning[word]
        if not reason[row]:
            reason[row] = word
    frame["state"], frame["reason"] = state, reason
    n = len({row for row, _ in words})
    row, word = words[0]
    notes.append(
        Note(
            "words",
            n,
            f"{n} rows hold a word where a number should stand (first: {word!r} in row {row}, which counts as "
            f"{meaning[word]})",
        )
    )


def ended_early(frame: pd.DataFrame, notes: list[Note]) -> pd.DataFrame:
    """Runs that ended before they logged tokens saw none; those that never recorded their settings are left out."""
    ended = frame["state"].isin(["failed", "running", "pruned"]).to_numpy()
    if not ended.any():
        return frame
    tokens = frame["tokens"].to_numpy(copy=True)
    empty = ended & np.isnan(tokens)
    tokens[empty] = 0.0
    frame["tokens"] = tokens
    unusable = ended & ~np.isfinite(frame[["size", "batch", "lr"]].to_numpy()).all(axis=1)
    n = int(unusable.sum())
    if n and n < len(frame):
        notes.append(
            Note(
                "never-began", n, f"{n} runs that ended before they recorded size, batch and lr were left out"
            )
        )
        frame = frame.loc[~unusable].reset_index(drop=True)
    return frame


def take_finished(frame: pd.DataFrame, notes: list[Note], *, take: bool, planned_only: bool) -> None:
    """Runs that reached their planned tokens and are marked as failed or running: taken, or counted.

    The plan is the run's own `target_tokens`, or what a complete run of its size reached. Pruned runs are not meant:
    somebody decided to stop them.

    Args:
        planned_only: the column of tokens is the plan itself, so that it does not say how far a run came.
    """
    state = frame["state"].to_numpy(dtype=object, copy=True)
    other = np.isin(state, ("failed", "running")) & np.isfinite(frame["loss"].to_numpy())
    if not other.any():
        return
    tokens, planned = frame["tokens"].to_numpy(), frame["target_tokens"].to_numpy()
    own = np.isfinite(planned)
    if planned_only and not (own & other).any():
        if take:
            raise TableError(
                "take_finished=True needs the tokens that a run saw, and the column of tokens holds those it was "
                "planned for; name both with columns={'tokens': …} and columns={'target_tokens': …}"
            )
        return
    reached = other & own & (tokens > 0) & (tokens >= REACHED * planned)
    unplanned = other & ~own & (tokens > 0)
    for size in np.unique(frame["size"].to_numpy()[unplanned]):
        rows = frame["size"].to_numpy() == size
        done = np.unique(tokens[rows & (state == "complete")])
        for row in np.flatnonzero(rows & unplanned):
            reached[row] = bool(done.size) and bool(np.any(np.abs(tokens[row] / done - 1) <= 1 - REACHED))
    n = int(reached.sum())
    if not n:
        return
    said = f"{n} runs reached their planned tokens though they are marked as failed or running"
    if take:
        state[reached] = "complete"
        frame["state"] = state
        notes.append(Note("taken-finished", n, f"{said}, and were taken as complete"))
    else:
        notes.append(Note("finished-not-taken", n, f"{said}; pass take_finished=True to use them"))
