"""TrialTable: what every run left behind, as one validated table. Reads, writes, joins, selects, sums costs.

The table is the project's waist: laws, verdicts, comparisons and figures read only this. Costs are float64,
for 6·N·D passes int64 at the sizes that matter.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from metaopt_hpo import markup
from metaopt_hpo.trials import schema
from metaopt_hpo.trials.complete import complete
from metaopt_hpo.trials.conform import Options, Reading
from metaopt_hpo.trials.files import VERSION_KEY as VERSION_KEY
from metaopt_hpo.trials.files import readable, write_frame
from metaopt_hpo.trials.numbers import decimal_mark
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.rows import frame_of, records_of
from metaopt_hpo.trials.schema import Note, TableError
from metaopt_hpo.trials.values import merge_params

SHOWN = 10
"""Rows that a notebook shows."""


class TrialTable:
    """An immutable table of trials with the columns of `TrialRecord`.

    Build one with `from_frame`, `from_records` or `read`. `frame` has one column per field of `TrialRecord`:
    numbers are float64, `params` is JSON text, a curve is the columns `curve_tokens`, `curve_loss`, … holding
    tuples of floats, or None where the run reported nothing between.

    Attributes:
        frame: the pandas DataFrame (do not write to it).
        notes: counted remarks made while reading (`Note(code, count, message)`), each also said as a warning.

    Examples:
        >>> import pandas as pd
        >>> from metaopt_hpo import TrialTable
        >>> frame = pd.DataFrame({"size": [1e6], "tokens": [1e8], "batch": [1e4], "lr": [1e-3], "loss": [3.2]})
        >>> table = TrialTable.from_frame(frame)
        >>> len(table), table.cost()
        (1, 600000000000000.0)
    """

    __slots__ = ("frame", "notes")

    frame: pd.DataFrame
    notes: tuple[Note, ...]

    def __init__(self, frame: pd.DataFrame, notes: tuple[Note, ...] = ()) -> None:
        missing = [c for c in schema.COLUMN_NAMES if c not in frame.columns]
        if missing:
            raise TableError(
                f"columns {missing} are missing; build a table with from_frame, from_records or read"
            )
        self.frame = frame
        self.notes = notes

    # -- building -------------------------------------------------------------------------------------------

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        columns: Mapping[str, str | float] | None = None,
        *,
        units: Mapping[str, float | str] | None = None,
        sequence_length: float | None = None,
        decimal: str | None = None,
        take_finished: bool = False,
        implausible: Literal["refuse", "warn"] = "refuse",
    ) -> TrialTable:
        """A table from a DataFrame with at least size, tokens, batch, lr and loss.

        Args:
            frame: one row a run, or one a report: rows that share a run's id and count its progress become one
                run with its curve.
            columns: our name → the frame's name, or a number that every row shares (`{"batch": 32768}`). Columns
                whose names can mean nothing else (`learning_rate`, `config/lr`) are found without it. `steps` or
                `epochs` with `unique_tokens` may stand for tokens; `progress` names what grows within a run.
            units: our name → factor to multiply by, or "sequences" (with `sequence_length`), "thousands",
                "millions", "billions", "trillions"; for tokens also "per_parameter", "chinchilla" (20 tokens a
                parameter) and "epochs" (of `unique_tokens`). A column whose unit is named is not doubted.
            sequence_length: tokens in a sequence.
            decimal: "comma" or "point", where the table's numbers leave it open.
            take_finished: count runs that are marked as failed or running as complete where they reached their
                planned tokens.
            implausible: refuse numbers that no run has (the default: such a table gives a law that is wrong
                without a word), or only warn.

        Columns of other names become hyperparameters (`params`). Rows with a NaN or infinite loss stay and
        count as diverged; exact duplicates are dropped; both are counted in `notes` and warned about.

        Raises:
            TableError: a column is missing, a value cannot be meant or can be meant in two ways, or two rows of one
                trial contradict.
        """
        reading = Reading(
            Options(
                columns or {}, units or {}, sequence_length, decimal_mark(decimal), take_finished, implausible
            )
        )
        reading.take(frame)
        return cls._from_reading(reading)

    @classmethod
    def _from_reading(cls, reading: Reading) -> TrialTable:
        out, notes = reading.finish()
        schema.issue(notes, stacklevel=4)
        return cls(out, tuple(notes))

    @classmethod
    def from_records(cls, records: Iterable[TrialRecord], *, warn: bool = True) -> TrialTable:
        """A table of these trials.

        Args:
            records: the trials.
            warn: say what `notes` count as warnings too. Threads pass False: warning filters belong to the whole
                process, and cannot be silenced in one thread alone.
        """
        notes: list[Note] = []
        frame = complete(frame_of(records), notes)
        if warn:
            schema.issue(notes)
        return cls(frame, tuple(notes))

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        columns: Mapping[str, str | float] | None = None,
        *,
        units: Mapping[str, float | str] | None = None,
        sequence_length: float | None = None,
        decimal: str | None = None,
        take_finished: bool = False,
        implausible: Literal["refuse", "warn"] = "refuse",
        format: str | None = None,
    ) -> TrialTable:
        """Read a table, an export or a folder of runs; arguments as `from_frame`.

        Args:
            path: `.csv`, `.tsv`, `.parquet`, `.feather`, `.jsonl`, `.json`, packed or not; a folder of Ray, MLflow,
                W&B, Lightning, Transformers or TensorBoard; an Optuna storage's URL. docs/tables.md lists them.
            format: name of the reader, where the file does not show whose it is; see `trials.exports.names`.

        Text files stream in chunks. The schema's version in a Parquet file that `write` made is checked.
        """
        from metaopt_hpo.trials.exports import open_export

        options = Options(
            columns or {}, units or {}, sequence_length, decimal_mark(decimal), take_finished, implausible
        )
        with readable(path):
            return cls._from_reading(open_export(path, format=format).reading(options))

    @classmethod
    def concat(cls, tables: Iterable[TrialTable]) -> TrialTable:
        """All trials of several tables; one that two tables hold alike is kept once (see `notes`)."""
        parts = list(tables)
        if not parts:
            raise ValueError("concat needs at least one table, got none")
        notes: list[Note] = []
        frame = complete(pd.concat([t.frame for t in parts], ignore_index=True), notes)
        known = {n for t in parts for n in t.notes}
        return cls(frame, tuple(known | set(notes)))

    # -- using ----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.frame)

    def _repr_html_(self) -> str:
        """For notebooks: the first rows in the columns that people compare, and what reading remarked."""
        head = ("size", "tokens", "batch", "lr", "loss", "strategy", "state")
        frame = self.frame
        rows = [
            [f"{v:.4g}" if isinstance(v, float) else str(v) for v in row]
            for row in frame.loc[:, list(head)].head(SHOWN).itertuples(index=False)
        ]
        more = f"{len(frame) - SHOWN} more; all columns are in .frame" if len(frame) > SHOWN else ""
        notes = "; ".join([more] * bool(more) + [n.message for n in self.notes])
        return markup.table(head, rows, caption=repr(self), note=notes)

    def __repr__(self) -> str:
        f = self.frame
        cells = f.groupby(["size", "tokens"]).ngroups
        return f"TrialTable({len(f)} trials, {f['size'].nunique()} sizes, {cells} cells)"

    def records(self) -> list[TrialRecord]:
        """The trials as plain dataclasses."""
        return list(records_of(self.frame))

    def select(
        self,
        where: Callable[[pd.DataFrame], Any] | Sequence[bool] | np.ndarray | None = None,
        **conditions: Any,
    ) -> TrialTable:
        """The trials that meet every condition.

        Args:
            where: a boolean mask, or a function from the frame to one.
            conditions: column = value, = list/tuple/set of values, or = function from the column to a mask.
        """
        mask = np.ones(len(self.frame), dtype=bool)
        if where is not None:
            got = np.asarray(where(self.frame) if callable(where) else where, dtype=bool)
            if got.shape != mask.shape:
                raise ValueError(
                    f"where must give {mask.size} booleans, one per trial, got shape {got.shape}"
                )
            mask &= got
        for name, wanted in conditions.items():
            if name not in schema.COLUMN_NAMES:
                raise ValueError(f"no column {name!r}; there are {', '.join(schema.COLUMN_NAMES)}")
            col = self.frame[name]
            if callable(wanted):
                mask &= np.asarray(wanted(col), dtype=bool)
            elif isinstance(wanted, (list, tuple, set, frozenset, np.ndarray)):
                mask &= col.isin(list(wanted)).to_numpy()
            else:
                mask &= (col == wanted).to_numpy()
        return TrialTable(self.frame.loc[mask].reset_index(drop=True), self.notes)

    def join(self, frame: pd.DataFrame, *, on: Sequence[str] = ("study", "trial")) -> TrialTable:
        """This table with what `frame` knows about the same trials.

        Columns of the schema fill values that are missing here; others become hyperparameters. Rows of
        `frame` without a partner are an error, so that no measurement is lost.
        """
        keys = list(on)
        absent = [k for k in keys if k not in frame.columns]
        if absent:
            raise TableError(f"cannot join: column {absent[0]!r} is missing in the other frame")
        if frame.duplicated(keys).any():
            raise TableError(f"cannot join: the other frame has several rows for one {tuple(keys)}")
        merged = self.frame[keys].merge(frame, on=keys, how="left", indicator=True)
        hit = (merged["_merge"] == "both").to_numpy()
        if int(hit.sum()) < len(frame):
            raise TableError(
                f"cannot join: {len(frame) - int(hit.sum())} rows of the other frame match no trial here"
            )
        out = self.frame.copy()
        extra: list[str] = []
        for name in merged.columns.drop([*keys, "_merge"]):
            if name in schema.COLUMN_NAMES:
                out[name] = out[name].where(out[name].notna() & (out[name] != ""), merged[name].to_numpy())
            else:
                extra.append(str(name))
        if extra:
            out["params"] = merge_params(out["params"], merged.loc[:, extra])
        notes: list[Note] = []
        return TrialTable(complete(out, notes), self.notes + tuple(notes))

    def costs(self) -> pd.Series:
        """Training FLOPs of each trial (float64): as recorded, else 6·N·D of the tokens it saw."""
        cost = self.frame["cost"]
        return cost.where(cost.notna(), 6.0 * self.frame["size"] * self.frame["tokens"]).astype("float64")

    def cost(self) -> float:
        """Training FLOPs of all trials together, failed, pruned and diverged ones included."""
        return math.fsum(self.costs().to_numpy())

    # -- writing --------------------------------------------------------------------------------------------

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write `.parquet` (schema version inside) or `.csv`; the file appears whole or not at all."""
        return write_frame(self.frame, Path(path))
