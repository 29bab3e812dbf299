"""Units of a table's columns: factors that a user names, and numbers that cannot be meant as they stand.

A whole column outside the plausible range, or a part of one in another unit, gives a law that is wrong without a
word; so it is refused unless the user says that the numbers are right.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

from metaopt_hpo.trials.schema import Note, TableError, rows_text

FACTORS = {"thousands": 1e3, "millions": 1e6, "billions": 1e9, "trillions": 1e12}

RELATIVE = ("sequences", "per_parameter", "chinchilla", "epochs")
"""Units that need another quantity: a sequence's length, the run's size, the data's unique tokens."""

CHINCHILLA = 20.0
"""Tokens a parameter of one Chinchilla multiple (Hoffmann et al. 2022)."""

IMPLAUSIBLE_STEPS = 1e7
"""Optimizer steps that no ordinary run takes; a median above it means a batch counted in sequences."""

MIXED_UNITS_FACTOR = 200.0
"""An empty gap this wide between the batches of one (size, tokens) cell means two units in one column; so does one
between the tokens a parameter, or the steps, of all runs."""

MIXED_UNITS_GAP = 50.0
"""So does one this wide where the cell's other batches stand closer together than `GRID_FACTOR`."""

GRID_FACTOR = 8.0

FEW_STEPS = 1e3
"""Runs with so many times fewer optimizer steps than the median run have tokens counted in sequences."""

MANY_STEPS = 1e6
"""Steps from which a run with `FEW_STEPS` times more of them than the median run has its batch in sequences."""

MANY_TOKENS = 1e6
"""Tokens a parameter that no run sees: its size is counted in millions or billions."""

USUAL_TOKENS = 1e4
"""Tokens a parameter that whole tables of runs hardly see: ten times what the longest-trained small models do."""

FEW_TOKENS = 0.1
"""Tokens a parameter: a median below it means tokens and batch counted in sequences, or fine-tuning."""

SMALLEST_SIZE = 1e3
"""Parameters: whole tables of smaller models are counted in millions or billions."""

SMALL_BATCH = 2048.0
MANY_SEEN = 1e8
"""Batches below the first are no batches of tokens in runs that see more than the second; of examples they may be."""

LARGEST = {"size": 1e14, "tokens": 1e17, "batch": 1e11, "lr": 1e3, "loss": 1e3}
"""What no run has; a loss in nats above it is no loss of a model, or has lost its decimal mark."""


def factor(name: str, unit: float | str, sequence_length: float | None) -> float | None:
    """What a column is multiplied by; None for a unit of another quantity (`RELATIVE`, but sequences).

    Raises:
        ValueError: an unknown unit, or sequences without their length.
    """
    if isinstance(unit, str):
        if unit == "sequences":
            if sequence_length is None or not sequence_length > 0:
                raise ValueError(
                    f"units of {name!r} are sequences: pass sequence_length=… (tokens in a sequence)"
                )
            return float(sequence_length)
        if unit in FACTORS:
            return FACTORS[unit]
        if unit in RELATIVE and name in ("tokens", "target_tokens", "curve_tokens"):
            return None
        raise ValueError(
            f"unit of {name!r} must be a number, one of {', '.join(sorted(FACTORS))} or sequences"
            + (", per_parameter, chinchilla or epochs" if name == "tokens" else "")
            + f", got {unit!r}"
        )
    if not (math.isfinite(unit) and unit > 0):
        raise ValueError(f"unit of {name!r} must be a positive factor, got {unit!r}")
    return float(unit)


def relative(frame: pd.DataFrame, units: Mapping[str, float | str]) -> None:
    """Tokens that were counted per parameter, in Chinchilla multiples or in epochs, as tokens."""
    for name in ("tokens", "target_tokens"):
        unit = units.get(name)
        if unit in ("per_parameter", "chinchilla"):
            each = CHINCHILLA if unit == "chinchilla" else 1.0
            frame[name] = frame[name] * frame["size"] * each
        elif unit == "epochs":
            if not np.isfinite(frame["unique_tokens"]).any():
                raise TableError(
                    f"{name!r} counts epochs: name the data's tokens with columns={{'unique_tokens': …}}, a column or "
                    "one number"
                )
            frame[name] = frame[name] * frame["unique_tokens"]


class _Remarks:
    """Collects what looks wrong, each with the columns it is about."""

    def __init__(self) -> None:
        self.found: list[tuple[Note, tuple[str, ...]]] = []

    def add(self, code: str, count: int, message: str, *columns: str) -> None:
        self.found.append((Note(code, count, message), columns))


def check(
    frame: pd.DataFrame,
    notes: list[Note],
    *,
    told: Collection[str] = (),
    refuse: bool = False,
    foreign: bool = False,
) -> None:
    """Look for numbers that cannot be meant as they stand.

    Args:
        frame: a complete frame in the schema's units.
        told: columns whose unit the user named: nothing is said against a whole one of them.
        refuse: raise instead of noting.
        foreign: the table was not written by this package, so that its units are anybody's guess.

    Raises:
        TableError: something was found and `refuse`; the message says how to name the unit.
    """
    remarks = _Remarks()
    _look(frame, remarks, foreign)
    for note, columns in remarks.found:
        if note.code == "units-mixed":
            remedy = "write them alike, or pass implausible='warn' where they are right"
        elif any(c in told for c in columns):
            continue
        else:
            remedy = (
                f"{_UNIT_REMEDY[columns[0]]}, or pass units={{{columns[0]!r}: 1}} where the numbers are right"
            )
        said = Note(note.code, note.count, f"{note.message}; {remedy}")
        if refuse:
            raise TableError(said.message)
        notes.append(said)


_UNIT_REMEDY = {
    "size": "name the unit, such as units={'size': 'millions'}",
    "tokens": "name the unit, such as units={'tokens': 'billions'}, or units={'tokens': 'sequences'} with "
    "sequence_length=…",
    "batch": "name the unit, such as units={'batch': 'sequences'} with sequence_length=…",
    "lr": "correct them",
    "loss": "correct them",
}


def _look(frame: pd.DataFrame, remarks: _Remarks, foreign: bool) -> None:
    done = frame["state"].to_numpy() == "complete"
    if not done.any():
        return
    size, tokens, batch = (frame[c].to_numpy() for c in ("size", "tokens", "batch"))
    loss = np.abs(frame["loss"].to_numpy())
    for name, largest in LARGEST.items() if foreign else ():
        values = frame[name].to_numpy() if name != "loss" else np.where(np.isfinite(loss), loss, 0.0)
        large = done & (values > largest)
        if large.any():
            remarks.add(
                f"units-{name}",
                int(large.sum()),
                f"{rows_text(large)} hold a {name} above {largest:g} (first: {values[np.flatnonzero(large)[0]]:g}), "
                + (
                    "which looks as if a decimal mark was lost"
                    if name in ("loss", "lr")
                    else "which no run has"
                ),
                name,
            )
    short = done & (tokens < batch)
    if short.any():
        remarks.add(
            "units-tokens",
            int(short.sum()),
            f"{rows_text(short)} saw fewer tokens than one batch holds: tokens look as if counted in sequences, "
            "millions or billions",
            "tokens",
            "batch",
        )
    small = done & (tokens / size > MANY_TOKENS)
    if small.any():
        remarks.add(
            "units-size",
            int(small.sum()),
            f"{rows_text(small)} saw more than {MANY_TOKENS:g} tokens a parameter: size looks as if counted in "
            "millions or billions",
            "size",
        )
    elif foreign and np.median(size[done]) < min(SMALLEST_SIZE, 1e-3 * float(np.median(batch[done]))):
        remarks.add(
            "units-size",
            int(done.sum()),
            f"models have {np.median(size[done]):.3g} parameters in the median: size looks as if counted in millions "
            "or billions",
            "size",
        )
    elif foreign and np.median(tokens[done] / size[done]) > USUAL_TOKENS:
        remarks.add(
            "units-size",
            int(done.sum()),
            f"runs saw {np.median(tokens[done] / size[done]):.3g} tokens a parameter in the median: size looks as if "
            "counted in thousands",
            "size",
            "tokens",
        )
    if foreign and np.median(batch[done]) < 1:
        remarks.add(
            "units-batch",
            int(done.sum()),
            f"batches hold {np.median(batch[done]):.3g} tokens in the median: batch looks as if counted in millions or "
            "billions",
            "batch",
        )
    steps = tokens / batch
    usual = float(np.median(steps[done]))
    if usual > IMPLAUSIBLE_STEPS:
        remarks.add(
            "units-batch",
            int((steps[done] > IMPLAUSIBLE_STEPS).sum()),
            f"runs would have taken {usual:.2g} optimizer steps: batch looks as if counted in sequences",
            "batch",
            "tokens",
        )
        return
    if foreign and np.median(batch[done]) < SMALL_BATCH and np.median(tokens[done]) > MANY_SEEN:
        remarks.add(
            "units-batch",
            int(done.sum()),
            f"batches hold {np.median(batch[done]):.3g} tokens in the median, for runs of "
            f"{np.median(tokens[done]):.3g}: batch looks as if counted in sequences",
            "batch",
        )
        return
    few = done & (steps < usual / FEW_STEPS) & ~short
    if few.any():
        remarks.add(
            "units-mixed",
            int(few.sum()),
            f"{rows_text(few)} took over {FEW_STEPS:g} times fewer optimizer steps than the median run ({usual:.2g}): "
            "their tokens look as if counted in sequences",
            "tokens",
        )
    many = done & (steps > max(usual * FEW_STEPS, MANY_STEPS))
    if many.any():
        remarks.add(
            "units-mixed",
            int(many.sum()),
            f"{rows_text(many)} took over {FEW_STEPS:g} times more optimizer steps than the median run ({usual:.2g}): "
            "their batch looks as if counted in sequences",
            "batch",
        )
    each = float(np.median(tokens[done] / size[done]))
    compared = not foreign and bool(
        (frame["method"] != "").all()
    )  # a workload counted its own parameters and tokens
    if each < FEW_TOKENS and not short.any() and not compared:
        code, what = (
            ("units-tokens", "tokens look") if usual < 100 else ("units-both", "tokens and batch look")
        )
        remarks.add(
            code,
            int(done.sum()),
            f"runs saw {each:.2g} tokens a parameter in {usual:.2g} steps: unless this is fine-tuning, {what} as if "
            "counted in sequences",
            "tokens",
            "batch",
        )
    jumps = _gaps(frame.loc[done, ["size", "tokens", "batch"]])
    if jumps:
        remarks.add(
            "units-mixed",
            jumps,
            f"in {jumps} cells of equal size and tokens the batches differ by a factor of {MIXED_UNITS_GAP:g} or more "
            "with nothing between: some rows look as if counted in sequences",
            "batch",
        )
    if not foreign or any(n.code == "units-mixed" for n, _ in remarks.found) or small.any() or short.any():
        return
    for what, values, column in (
        ("tokens a parameter", tokens / size, "size or tokens"),
        ("optimizer steps", steps, "tokens or batch"),
    ):
        row = _split(values, done)
        if row is not None:
            remarks.add(
                "units-mixed",
                int(done.sum()),
                f"runs fall into two groups whose {what} differ by a factor of {MIXED_UNITS_FACTOR:g} or more with "
                f"nothing between (the second begins at row {row}): a part of the column {column} looks as if counted "
                "in another unit",
                column.split()[0],
            )
            return


def _split(values: np.ndarray, done: np.ndarray) -> int | None:
    """The first row of the smaller group, where values fall into two groups with a wide gap between."""
    ordered = np.sort(values[done])
    ratio = ordered[1:] / ordered[:-1]
    if ratio.size == 0 or ratio.max() < MIXED_UNITS_FACTOR:
        return None
    border = ordered[1:][ratio.argmax()]
    low, high = done & (values < border), done & (values >= border)
    return int(np.flatnonzero(low if low.sum() <= high.sum() else high)[0])


def _gaps(frame: pd.DataFrame) -> int:
    """Gaps between neighbouring batches of a cell that no grid has."""
    cells = frame.drop_duplicates().sort_values(["size", "tokens", "batch"])
    same = ((cells["size"].diff() == 0) & (cells["tokens"].diff() == 0)).to_numpy()
    ratio = (cells["batch"] / cells["batch"].shift()).to_numpy()
    wide = same & (ratio >= MIXED_UNITS_GAP)
    if not wide.any():
        return 0
    cell = np.cumsum(~same)
    close = np.bincount(cell, same & (ratio <= GRID_FACTOR)) > 0  # cells that have an ordinary spacing too
    far = np.bincount(cell, same & (ratio > GRID_FACTOR)) == 1  # and a single gap
    return int((wide & ((ratio >= MIXED_UNITS_FACTOR) | (close & far)[cell])).sum())
