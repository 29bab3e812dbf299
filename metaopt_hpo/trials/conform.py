"""A foreign frame turned into a trial table's columns: names, units, types.

A table is read in chunks: `Reading.take` conforms one, `Reading.finish` settles what only the whole table can say
(which sign separates decimals, which rows are reports of one run, whether the units are plausible).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from metaopt_hpo.trials import cells, naming, numbers, quantities, reports, schema, states, units
from metaopt_hpo.trials.complete import complete
from metaopt_hpo.trials.nested import expand
from metaopt_hpo.trials.schema import Note, TableError
from metaopt_hpo.trials.values import curve_values, merge_params, objects, params_text, text_of


@dataclass(frozen=True)
class Options:
    """How a user says a foreign table is to be read; see `TrialTable.read`."""

    columns: Mapping[str, str | float]
    units: Mapping[str, float | str]
    sequence_length: float | None = None
    decimal: cells.Mark | None = None
    take_finished: bool = False
    implausible: Literal["refuse", "warn"] = "refuse"

    def __post_init__(self) -> None:
        naming.check_nameable(self.columns, self.units)
        if self.implausible not in ("refuse", "warn"):
            raise ValueError(f"implausible must be 'refuse' or 'warn', got {self.implausible!r}")
        for name, unit in self.units.items():
            units.factor(name, unit, self.sequence_length)


class Reading:
    """One table as it is read.

    Args:
        options: what the user said.
        line: lines of a text file before its first row, so that messages can name a cell's line.
        points_open: see `NumberReader`.
        settings: prefixes of the columns that are hyperparameters, which lose them; without one, all that are not
            the schema's are.
        sparse: a report without a loss did not evaluate it; a loss that was lost is infinite there.
    """

    def __init__(
        self,
        options: Options,
        *,
        line: int | None = None,
        points_open: bool = False,
        settings: tuple[str, ...] = (),
        sparse: bool = False,
    ) -> None:
        self.options = options
        self.sparse = sparse
        self.settings = settings
        self.notes: list[Note] = []
        self.numbers = numbers.NumberReader(
            options.decimal,
            points_open=points_open,
            line=line,
            relative=[n for n, u in options.units.items() if u in units.RELATIVE and u != "sequences"],
        )
        self.names: naming.Names | None = None
        self.own = False
        self.counted = False
        self.parts: list[pd.DataFrame] = []
        self.rows = 0

    # -- a chunk ----------------------------------------------------------------------------------------------

    def take(self, frame: pd.DataFrame) -> None:
        """Conform the next rows of the table."""
        frame = frame.copy(deep=False)
        frame.index = pd.RangeIndex(self.rows, self.rows + len(frame))
        self.rows += len(frame)
        former = {old: new for old, new in schema.FORMER_NAMES.items() if new not in frame.columns}
        frame = expand(frame.rename(columns=former))
        twice = frame.columns[frame.columns.duplicated()]
        if len(twice):
            raise TableError(f"column {twice[0]!r} stands twice in the table; rename or remove one")
        first = self.names is None
        if first:
            self.counted = naming.counts_params(frame)
        names = naming.resolve(
            list(frame.columns), self.options.columns, self.notes if first else None, counted=self.counted
        )
        if first:
            self.names = names
            self.own = naming.is_own(list(frame.columns))
            self._check_loss(names.source("loss"))
        self.parts.append(self._conform(frame, names))

    def _check_loss(self, source: object) -> None:
        """Ask for the unit of a loss whose column's name says that it is not nats per token."""
        unit = quantities.loss_unit(source) if isinstance(source, str) else ""
        if not unit or "loss" in self.options.units:
            return
        remedy = f"pass units={{'loss': {unit!r}}}"
        if unit == "bits per byte":
            remedy = "pass units={'loss': FACTOR} with ln 2 × bytes per token"
        message = (
            f"the loss is read from the column {source!r}, which by its name holds {unit} and not nats per token; "
            f"{remedy}, or units={{'loss': 1}} where it is nats per token"
        )
        if self.options.implausible == "refuse":
            raise TableError(message)
        self.notes.append(Note("units-loss", 1, message))

    def _conform(self, frame: pd.DataFrame, names: naming.Names) -> pd.DataFrame:
        if names.missing:
            raise TableError(
                naming.missing_message(names.missing, list(map(str, frame.columns)), names.found)
            )
        used: set[str] = set()
        out: dict[str, Any] = {}
        n = len(frame)
        for col in schema.COLUMNS:
            source = names.source(col.name)
            values: pd.Series | None
            if isinstance(source, float):
                values = pd.Series(np.full(n, source), index=frame.index)
            elif source is None:
                values = None
            else:
                values = frame[source]
            optional = col.name in naming.OPTIONAL and col.name not in self.options.columns
            try:
                out[col.name] = self._convert(values, col, n, source)
            except TableError:
                if not (optional and source != col.name):
                    raise
                out[col.name], source = self._convert(None, col, n, None), None
            if isinstance(source, str):
                used.add(source)
            self._in_units(out, col)
        result = pd.DataFrame(out, index=frame.index)
        for name in naming.DERIVED:
            source = names.source(name)
            if isinstance(source, float):
                result[f"_{name}"] = source
            elif isinstance(source, str) and ("tokens" not in names.found or self._counts_epochs()):
                result[f"_{name}"] = self.numbers.read(frame[source], name, source)
        used |= self._helpers(result, frame, names)
        extra = [c for c in frame.columns if str(c) not in used and c not in schema.COLUMN_NAMES]
        others = frame.loc[:, extra]
        if self.settings:
            own = {c: p for c in extra for p in self.settings if str(c).startswith(p)}
            others = frame.loc[:, list(own)].rename(columns=lambda c: str(c).removeprefix(own[c]))
            others = others.loc[:, ~others.columns.duplicated()]
        if len(others.columns):
            result["params"] = merge_params(result["params"], others)
        return result

    def _counts_epochs(self) -> bool:
        return self.options.units.get("tokens") == "epochs"

    def _in_units(self, out: dict[str, Any], col: schema.Column) -> None:
        given = self.options.units
        # a curve, and the plan, count as the run's tokens do
        unit = given.get(col.name, given.get(col.name.removeprefix("curve_")))
        if unit is None and col.name == "target_tokens":
            unit = given.get("tokens")
        if unit is None:
            return
        factor = units.factor(col.name, unit, self.options.sequence_length)
        if factor is None or factor == 1.0:
            return
        if col.kind == "curve":
            out[col.name] = objects([v and tuple(factor * x for x in v) for v in out[col.name]])
        elif col.name not in self.numbers.columns or not self.numbers.columns[col.name].open:
            out[col.name] = out[col.name] * factor
        else:
            self.numbers.columns[col.name].factor = factor
            out[col.name] = out[col.name] * factor

    def _convert(self, values: pd.Series | None, col: schema.Column, n: int, source: object) -> Any:
        if values is None:
            return (
                objects([col.default] * n)
                if col.kind in ("text", "params", "curve")
                else np.full(n, math.nan if col.default is None else col.default)
            )
        if col.kind == "number":
            return self.numbers.read(values, col.name, str(source))
        if col.kind == "integer":
            found = np.nan_to_num(self.numbers.read(values, col.name, str(source)), nan=0.0)
            if (found % 1 != 0).any():
                raise TableError(f"column {str(source)!r} must hold whole numbers")
            return found.astype("int64")
        if col.kind == "curve":
            return objects([curve_values(v, col.name) for v in values])
        if col.kind == "params":
            return objects([params_text(v) for v in values])
        if col.name == "state":
            if source != "state" and "state" not in self.options.columns and not states.recognised(values):
                raise TableError(f"column {source!r} holds no states")
            return states.read(values, str(source))
        return objects(
            [
                "" if v is None or v is pd.NA or (isinstance(v, float) and math.isnan(v)) else text_of(v)
                for v in values
            ]
        )

    def _helpers(self, result: pd.DataFrame, frame: pd.DataFrame, names: naming.Names) -> set[str]:
        """Keep what `reports` needs to tell runs from reports; which of it is no hyperparameter."""
        if names.source("curve_tokens") is not None:
            return set()
        given = self.options.columns.get("progress")
        found = names.source("progress")
        progress = [found] if isinstance(found, str) else reports.progress_columns(list(frame.columns))
        read = {
            v
            for k, v in names.found.items()
            if k not in ("tokens", "progress")
            and not (k in naming.DERIVED and quantities.parts(v)[1] in reports.REPORTED)
        }
        progress = [c for c in progress if c not in read]
        if given is None and not progress:
            return set()
        trial = names.source("trial")
        ids = [trial] if isinstance(trial, str) else []
        ids += [c for c in reports.id_columns(list(frame.columns)) if c not in ids]
        for column in ids:
            result[reports.ID + column] = frame[column].to_numpy(dtype=object)
        for column in progress:
            values = pd.to_numeric(frame[column], errors="coerce") if column != found else None
            result[reports.PROGRESS + column] = (
                self.numbers.read(frame[column], "progress", column)
                if values is None
                else values.astype(float)
            )
        return {c for c in progress if quantities.parts(c)[1] in quantities.PROGRESS}

    # -- the whole --------------------------------------------------------------------------------------------

    def finish(self) -> tuple[pd.DataFrame, list[Note]]:
        """The table's frame and what is to be said about it."""
        frame = pd.concat(self.parts, ignore_index=True) if len(self.parts) > 1 else self.parts[0]
        self.parts = []
        if len(frame) == 0:
            raise TableError("the table has no rows")
        frame = frame.reset_index(drop=True)
        notes, options = self.notes, self.options
        self.numbers.settle(frame, notes, in_units=[n for n, u in options.units.items() if u != 1])
        states.from_words(frame, self.numbers.words, notes, cells.WORDS)
        frame = self._tokens(frame)
        assert self.names is not None
        lr_source = self.names.source("lr")
        frame = reports.fold(
            frame,
            notes,
            named=list(options.columns),
            sparse=self.sparse,
            lr_is_set=isinstance(lr_source, str) and quantities.parts(lr_source)[0] == "config",
            refuse=options.implausible == "refuse",
        )
        if not self.own:
            frame = states.ended_early(frame, notes)
            source = self.names.source("tokens")
            planned_only = isinstance(source, str) and quantities.parts(source)[0] == "config"
            states.take_finished(frame, notes, take=options.take_finished, planned_only=planned_only)
        frame = complete(
            frame,
            notes,
            told=set(options.units) | ({"tokens"} if "epochs" in self.names.found else set()),
            refuse=options.implausible == "refuse" and not self.own,
            foreign=not self.own,
        )
        return frame, notes

    def _tokens(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Tokens from what stands in for them: multiples of the size, epochs, or steps."""
        units.relative(frame, self.options.units)
        if "_epochs" in frame and np.isfinite(frame["unique_tokens"]).all():
            frame["tokens"] = frame["_epochs"] * frame["unique_tokens"]
            self.notes.append(Note("derived", len(frame), "tokens are epochs times unique tokens"))
        elif "_steps" in frame and np.isnan(frame["tokens"]).all():
            frame["tokens"] = frame["_steps"] * frame["batch"]
            self.notes.append(Note("derived", len(frame), "tokens are steps times batch"))
        return frame.drop(columns=[c for c in ("_epochs", "_steps") if c in frame])
