"""Numbers of a table that cannot be meant as they stand.

A whole column outside the plausible range, or a part of one in another unit, gives a law that is wrong without a
word; so it is refused unless the user says that the numbers are right.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd

from metaopt_hpo.trials.schema import Note, TableError, rows_text

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


REMEDIES = {
    "size": "name the unit, such as units={'size': 'millions'}",
    "tokens": "name the unit, such as units={'tokens': 'billions'}, or units={'tokens': 'sequences'} with "
    "sequence_length=…",
    "batch": "name the unit, such as units={'batch': 'sequences'} with sequence_length=…",
    "lr": "correct them",
    "loss": "correct them",
}


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
    for remark in _remarks(frame, foreign):
        if remark.mixed:
            remedy = "write them alike, or pass implausible='warn' where they are right"
        elif any(c in told for c in remark.columns):
            continue
        else:
            column = remark.columns[0]
            named = (
                f"name the unit, such as units={{{column!r}: {remark.unit!r}}}"
                if remark.unit
                else REMEDIES[column]
            )
            remedy = f"{named}, or pass units={{{column!r}: 1}} where the numbers are right"
        said = Note(remark.code, remark.count, f"{remark.message}; {remedy}")
        if refuse:
            raise TableError(said.message)
        notes.append(said)


@dataclass(frozen=True)
class _Remark:
    """Something that looks wrong, with the columns it is about."""

    code: str
    count: int
    message: str
    columns: tuple[str, ...]
    unit: str = ""
    """The one that the message names, where `REMEDIES` has another."""

    @property
    def mixed(self) -> bool:
        return self.code == "units-mixed"


@dataclass(frozen=True)
class _Runs:
    """Columns of a table; `done` marks complete runs, and medians are over these."""

    size: np.ndarray
    tokens: np.ndarray
    batch: np.ndarray
    lr: np.ndarray
    loss: np.ndarray
    done: np.ndarray

    @classmethod
    def of(cls, frame: pd.DataFrame) -> Self:
        loss = np.abs(frame["loss"].to_numpy())
        size, tokens, batch, lr = (frame[c].to_numpy() for c in ("size", "tokens", "batch", "lr"))
        done = frame["state"].to_numpy() == "complete"
        return cls(size, tokens, batch, lr, np.where(np.isfinite(loss), loss, 0.0), done)

    @property
    def count(self) -> int:
        return int(self.done.sum())

    @property
    def steps(self) -> np.ndarray:
        return np.asarray(self.tokens / self.batch)

    @property
    def each(self) -> np.ndarray:
        """Tokens a parameter."""
        return np.asarray(self.tokens / self.size)

    def median(self, values: np.ndarray) -> float:
        return float(np.median(values[self.done]))

    @property
    def short(self) -> np.ndarray:
        """Which saw fewer tokens than one batch holds."""
        return np.asarray(self.done & (self.tokens < self.batch))

    @property
    def small(self) -> np.ndarray:
        """Which saw more tokens a parameter than any run does."""
        return np.asarray(self.done & (self.each > MANY_TOKENS))


def _remarks(frame: pd.DataFrame, foreign: bool) -> Iterator[_Remark]:
    """What looks wrong, the most telling first; nothing more where a whole column of batches is in another unit."""
    runs = _Runs.of(frame)
    if not runs.count:
        return
    if foreign:
        yield from _parts_of_columns(runs)
        yield from _too_large(runs)
    yield from _fewer_than_a_batch(runs)
    yield from _small_sizes(runs, foreign)
    if foreign:
        yield from _batches_below_one(runs)
    whole = [*_too_many_steps(runs), *(_batches_of_sequences(runs) if foreign else ())][:1]
    if whole:
        yield from whole
        return
    parts = list(_odd_steps(runs))
    yield from parts
    # where every run has a method, a workload counted its own parameters and tokens
    if foreign or not (frame["method"] != "").all():
        yield from _few_tokens(runs)
    parts += (gaps := list(_gaps_of_batches(frame.loc[runs.done, ["size", "tokens", "batch"]])))
    yield from gaps
    if foreign and not parts and not runs.small.any() and not runs.short.any():
        yield from _two_groups(runs)


def _parts_of_columns(runs: _Runs) -> Iterator[_Remark]:
    """Rows that no run is like beside others that are ordinary: no unit of the whole column makes both right."""
    for odd, values, column, said in (
        (runs.small, runs.each, "size", f"saw more than {MANY_TOKENS:g} tokens a parameter"),
        (runs.short, runs.steps, "tokens", "saw fewer tokens than one batch holds"),
    ):
        if odd.any() and odd.sum() < runs.count and _second_group(values, runs.done) is not None:
            message = f"{rows_text(odd)} {said} and the others did not: they look as if their {column} were counted in "
            yield _Remark("units-mixed", int(odd.sum()), message + "another unit", (column,))


def _too_large(runs: _Runs) -> Iterator[_Remark]:
    for name, largest in LARGEST.items():
        values = getattr(runs, name)
        large = runs.done & (values > largest)
        if large.any():
            lost = (
                "which looks as if a decimal mark was lost" if name in ("loss", "lr") else "which no run has"
            )
            first = values[np.flatnonzero(large)[0]]
            message = f"{rows_text(large)} hold a {name} above {largest:g} (first: {first:g}), {lost}"
            yield _Remark(f"units-{name}", int(large.sum()), message, (name,))


def _fewer_than_a_batch(runs: _Runs) -> Iterator[_Remark]:
    if runs.short.any():
        message = (
            f"{rows_text(runs.short)} saw fewer tokens than one batch holds: tokens look as if counted in sequences, "
            "millions or billions"
        )
        yield _Remark("units-tokens", int(runs.short.sum()), message, ("tokens", "batch"))


def _small_sizes(runs: _Runs, foreign: bool) -> Iterator[_Remark]:
    size, each = runs.median(runs.size), runs.median(runs.each)
    count = runs.count
    columns: tuple[str, ...] = ("size",)
    unit = "billions" if size < 1 else ""
    if runs.small.any():
        count = int(runs.small.sum())
        message = (
            f"{rows_text(runs.small)} saw more than {MANY_TOKENS:g} tokens a parameter: size looks as if counted in "
            "millions or billions"
        )
    elif foreign and size < min(SMALLEST_SIZE, 1e-3 * runs.median(runs.batch)):
        message = f"models have {size:.3g} parameters in the median: size looks as if counted in millions or billions"
    elif foreign and each > USUAL_TOKENS:
        message = (
            f"runs saw {each:.3g} tokens a parameter in the median: size looks as if counted in thousands"
        )
        columns, unit = ("size", "tokens"), "thousands"
    else:
        return
    yield _Remark("units-size", count, message, columns, unit)


def _batches_below_one(runs: _Runs) -> Iterator[_Remark]:
    batch = runs.median(runs.batch)
    if batch < 1:
        message = f"batches hold {batch:.3g} tokens in the median: batch looks as if counted in millions or billions"
        yield _Remark("units-batch", runs.count, message, ("batch",), "millions")


def _too_many_steps(runs: _Runs) -> Iterator[_Remark]:
    usual = runs.median(runs.steps)
    if usual > IMPLAUSIBLE_STEPS:
        count = int((runs.steps[runs.done] > IMPLAUSIBLE_STEPS).sum())
        message = f"runs would have taken {usual:.2g} optimizer steps: batch looks as if counted in sequences"
        yield _Remark("units-batch", count, message, ("batch", "tokens"))


def _batches_of_sequences(runs: _Runs) -> Iterator[_Remark]:
    batch, tokens = runs.median(runs.batch), runs.median(runs.tokens)
    if batch < SMALL_BATCH and tokens > MANY_SEEN:
        message = (
            f"batches hold {batch:.3g} tokens in the median, for runs of {tokens:.3g}: batch looks as if counted in "
            "sequences"
        )
        yield _Remark("units-batch", runs.count, message, ("batch",))


def _odd_steps(runs: _Runs) -> Iterator[_Remark]:
    usual = runs.median(runs.steps)
    few = runs.done & (runs.steps < usual / FEW_STEPS) & ~runs.short
    many = runs.done & (runs.steps > max(usual * FEW_STEPS, MANY_STEPS))
    for odd, than, what, column in (
        (few, "fewer", "tokens look", "tokens"),
        (many, "more", "batch looks", "batch"),
    ):
        if odd.any():
            message = (
                f"{rows_text(odd)} took over {FEW_STEPS:g} times {than} optimizer steps than the median run "
                f"({usual:.2g}): their {what} as if counted in sequences"
            )
            yield _Remark("units-mixed", int(odd.sum()), message, (column,))


def _few_tokens(runs: _Runs) -> Iterator[_Remark]:
    each, usual = runs.median(runs.each), runs.median(runs.steps)
    if each < FEW_TOKENS and not runs.short.any():
        code, what = (
            ("units-tokens", "tokens look") if usual < 100 else ("units-both", "tokens and batch look")
        )
        message = (
            f"runs saw {each:.2g} tokens a parameter in {usual:.2g} steps: unless this is fine-tuning, {what} as if "
            "counted in sequences"
        )
        yield _Remark(code, runs.count, message, ("tokens", "batch"))


def _gaps_of_batches(frame: pd.DataFrame) -> Iterator[_Remark]:
    jumps = _gaps(frame)
    if jumps:
        message = (
            f"in {jumps} cells of equal size and tokens the batches differ by a factor of {MIXED_UNITS_GAP:g} or more "
            "with nothing between: some rows look as if counted in sequences"
        )
        yield _Remark("units-mixed", jumps, message, ("batch",))


def _two_groups(runs: _Runs) -> Iterator[_Remark]:
    for what, values, columns in (
        ("tokens a parameter", runs.each, ("size", "tokens")),
        ("optimizer steps", runs.steps, ("tokens", "batch")),
    ):
        row = _second_group(values, runs.done)
        if row is not None:
            message = (
                f"runs fall into two groups whose {what} differ by a factor of {MIXED_UNITS_FACTOR:g} or more with "
                f"nothing between (the second begins at row {row}): a part of the column {' or '.join(columns)} looks "
                "as if counted in another unit"
            )
            yield _Remark("units-mixed", runs.count, message, columns[:1])
            return


def _second_group(values: np.ndarray, done: np.ndarray) -> int | None:
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
