"""Which column of a foreign table holds what: as the user says, as its names say, or a question."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from metaopt_hpo.trials import quantities, schema
from metaopt_hpo.trials.numbers import joined, unit_of
from metaopt_hpo.trials.schema import Note, TableError

DERIVED = ("steps", "epochs")
"""Quantities that stand in for tokens: steps times batch, epochs times unique tokens."""

NAMEABLE = (*schema.COLUMN_NAMES, "curve", *DERIVED, "progress")
"""What `columns` may name. `progress` is what grows within a run, where the table has one row a report."""

OPTIONAL = ("seed", "unique_tokens", "target_tokens", "seconds", "cost", "state", "trial")
"""Columns that are found by their names but may be absent."""

SHOWN = 30
"""Names of a table that a message lists."""


@dataclass(frozen=True)
class Names:
    """Where each quantity is read: our name → the table's column, or a number that all rows share."""

    found: Mapping[str, str | float] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    """Required quantities that were not found."""

    def source(self, name: str) -> str | float | None:
        """Where a quantity is read; None where it is not."""
        return self.found.get(name)


def is_own(names: Sequence[object]) -> bool:
    """Whether these are the columns of a table that this package wrote."""
    return set(schema.REQUIRED) | {"state", "trial", "params"} <= set(map(str, names))


def counts_params(frame: pd.DataFrame) -> bool:
    """Whether a column `params` holds how many there are: numbers, or texts such as 30M."""
    if list(frame.columns).count("params") != 1:
        return False
    filled = frame["params"].dropna()
    return len(filled) > 0 and all(re.match(r"\s*\d", str(v)) for v in filled.head(100))


def check_nameable(*sources: Mapping[str, object]) -> None:
    """Refuse a quantity that no table has.

    Raises:
        ValueError: the unknown name, and the one that was perhaps meant.
    """
    for source in sources:
        for key in source:
            if key not in NAMEABLE:
                near = quantities.did_you_mean(key, NAMEABLE)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"{key!r} is no column of a trial table{hint}; there are {', '.join(schema.COLUMN_NAMES)}, "
                    f"{', '.join(DERIVED)}, progress"
                )


def resolve(
    names: Sequence[object],
    columns: Mapping[str, str | float],
    notes: list[Note] | None = None,
    *,
    counted: bool = False,
) -> Names:
    """Where the quantities of a table with these column names are read.

    Args:
        names: the table's columns.
        columns: what the user says: our name → the table's, or a number.
        notes: names other than the quantity's own that were taken without a question are said here.
        counted: a column `params` holds numbers, so that it is the size and not the hyperparameters.

    Raises:
        TableError: a column that the user names is not there.
    """
    check_nameable(columns)
    known = [str(n) for n in names]
    found: dict[str, str | float] = {}
    absent: list[tuple[str, str]] = []
    for ours, theirs in columns.items():
        if isinstance(theirs, (int, float)) and not isinstance(theirs, bool) and str(theirs) not in known:
            found[ours] = float(theirs)
            continue
        column = _column(str(theirs), known)
        if column is None:
            absent.append((ours, str(theirs)))
        else:
            found[ours] = column
    if absent:
        raise TableError(_absent(absent, known))
    taken = set(found.values())
    for ours in (*schema.REQUIRED, *OPTIONAL, *DERIVED):
        if ours in found:
            continue
        free = [n for n in known if n not in taken]
        exact = ours if ours in free else None
        asked = quantities.QUANTITIES[ours].setting or (ours == "loss" and not is_own(known))
        column = quantities.find(free, ours) if exact is None or asked else exact
        if ours == "size" and counted and not quantities.candidates(free, ours) and "params" in free:
            column = "params"
        if column is None:
            continue
        found[ours] = column
        taken.add(column)
        if (
            notes is not None
            and ours in schema.REQUIRED
            and quantities.parts(column)[1] != ours
            and not _ends(column, ours)
        ):
            notes.append(Note("mapped", 1, f"{ours} is read from the column {column!r}"))
    if "tokens" not in found:  # those a run has seen are the only ones it tells of
        seen = [
            n
            for q in quantities.PROGRESS_TOKENS
            for n in known
            if quantities.parts(n)[1] == q and n not in taken
        ]
        if seen:
            found["tokens"] = seen[0]
    for ours in schema.COLUMN_NAMES:
        if ours in schema.REQUIRED or (ours == "params" and counted):
            continue
        if ours not in found and ours in known and ours not in taken:
            found[ours] = ours
    missing = [q for q in schema.REQUIRED if q not in found]
    if "tokens" in missing and (
        ("steps" in found and "batch" in found) or ("epochs" in found and "unique_tokens" in found)
    ):
        missing.remove("tokens")
    return Names(found, tuple(missing))


def _ends(column: str, ours: str) -> bool:
    return quantities.normalise(re.split(r"[./]", column)[-1]) == ours


def _column(name: str, known: Sequence[str]) -> str | None:
    """The column of that name; prefixes that tools add, and case, may be left out where that is unambiguous."""
    if name in known:
        return name
    wanted = quantities.normalise(name)
    set_before = [n for n in known if quantities.parts(n) == ("config", wanted)]
    near = set_before or [n for n in known if wanted in (quantities.normalise(n), quantities.parts(n)[1])]
    if len(near) == 1:
        return near[0]
    bare = [n for n in known if n == re.sub(r"^(?:summary|config|metrics)[./]", "", name)]
    return bare[0] if bare else None


def _absent(absent: Sequence[tuple[str, str]], known: Sequence[str]) -> str:
    near = [(ours, quantities.did_you_mean(theirs, known, ours)) for ours, theirs in absent]
    hints = [f"columns={{{ours!r}: {names[0]!r}}}" for ours, names in near if names]
    what = joined([f"{theirs!r} (for {ours!r})" for ours, theirs in absent])
    verb = ("column", "is") if len(absent) == 1 else ("columns", "are")
    text = f"{verb[0]} {what} {verb[1]} missing"
    text += f"; did you mean {', '.join(hints)}?" if hints else ";"
    return f"{text} the table has {listed(known)}"


def listed(known: Sequence[str]) -> str:
    """The names of a table's columns, as far as a message can hold them."""
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return ", ".join(known[:SHOWN]) + more


def missing_message(missing: Sequence[str], known: Sequence[str], found: Mapping[str, object]) -> str:
    """What is said where required columns are missing: all of them, and what may be meant."""
    what = joined([f"{m!r}{unit_of(m)}" for m in missing])
    free = [n for n in known if n not in set(found.values())]
    hints = {m: near[0] for m in missing if (near := quantities.did_you_mean(m, free, m))}
    verb = "column" if len(missing) == 1 else "columns"
    text = f"{verb} {what} {'is' if len(missing) == 1 else 'are'} missing; the table has {listed(known)}"
    if missing == ("loss",) and quantities.candidates(free, "loss"):
        text = f"the table has several losses, and which of them is on held-out data is not said: {listed(known)}"
    if hints:
        text += f"; did you mean {', '.join(f'columns={{{m!r}: {n!r}}}' for m, n in hints.items())}?"
        counted = {m: unit for m, n in hints.items() if (unit := quantities.unit_hint(n))}
        for m, unit in counted.items():
            length = " with sequence_length=…" if unit == "sequences" else ""
            text += f" {hints[m]!r} looks as if it counts {unit}: units={{{m!r}: {unit!r}}}{length}."
    rest = [m for m in missing if m not in hints]
    if rest:
        end = " Name" if hints else "; name"
        text += (
            f"{end} {joined([repr(m) for m in rest]) if hints else 'it' if len(rest) == 1 else 'them'} with "
        )
        text += ", ".join(f"columns={{{m!r}: …}}" for m in rest)
    return text
