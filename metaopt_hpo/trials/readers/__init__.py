"""Tables and logs that other tools wrote: one file a tool's exports, found by what lies at a path.

`open_export` asks each reader, then those of other distributions (entry points `metaopt_hpo.readers`). A reader gives
rows in the tool's own names; `trials.conform` makes the table of them, whoever wrote it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from metaopt_hpo.trials.quantities import did_you_mean
from metaopt_hpo.trials.readers.base import Export as Export
from metaopt_hpo.trials.readers.base import Reader as Reader
from metaopt_hpo.trials.schema import TableError
from metaopt_hpo.trials.table import TrialTable

MODULES = (
    "ray", "mlflow", "wandb_runs", "wandb_export", "lightning", "transformers", "tensorboard", "optuna_frame", "plain",
)  # fmt: skip
"""Modules of this folder, in the order in which they are asked; each has a `READER`."""


def own_readers() -> list[Reader]:
    """The readers of this folder, in the order in which they are asked."""
    return [import_module(f"{__name__}.{m}").READER for m in MODULES]


def plain_reader() -> Reader:
    """The reader of tables without a tool of their own."""
    from metaopt_hpo.trials.readers.plain import READER

    return READER


def other_readers() -> list[Reader]:
    """Those of other distributions, whose frameworks are loaded with them; none where one is not installed."""
    found = []
    for entry in entry_points(group="metaopt_hpo.readers"):
        try:
            found.append(entry.load())
        except ImportError:
            continue
    return found


def names() -> list[str]:
    """What `format=` takes."""
    return [r.name for r in (*own_readers(), *other_readers())]


def open_export(path: str | os.PathLike[str], *, format: str | None = None) -> Export:
    """What lies at a path, as rows.

    Args:
        path: a file, a folder or a storage's URL.
        format: the reader's name, where the path does not show whose it is.

    Raises:
        TableError: nothing is there, no reader knows it, or it is damaged.
        ValueError: an unknown format.
    """
    text = os.fspath(path)
    if format is not None:
        known = {r.name: r for r in own_readers()}
        if format not in known:
            known |= {r.name: r for r in other_readers()}
        if format not in known:
            near = did_you_mean(format, known)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"format must be one of {', '.join(known)}, got {format!r}{hint}")
        return known[format].read(text)
    for ask in (own_readers, other_readers):  # the others' frameworks take seconds to load
        for reader in ask():
            if reader.recognises(text):
                return reader.read(text)
    if "://" in text:
        raise TableError(
            f"no reader knows {text!r}; an Optuna storage needs pip install 'metaopt-hpo[optuna]'"
        )
    if not Path(text).exists():
        raise TableError(f"there is no table at {text!r}")
    if Path(text).is_file():
        return plain_reader().read(text)  # says which kinds of files it knows
    raise TableError(
        f"{text!r} holds nothing that a reader knows: {', '.join(names())}; give the folder of the runs themselves, or "
        "their table as CSV, Parquet or JSON"
    )


def read_wandb(
    path: str | os.PathLike[str],
    columns: Mapping[str, str | float],
    *,
    units: Mapping[str, float | str] | None = None,
    sequence_length: float | None = None,
    history: Mapping[str, str] | None = None,
) -> TrialTable:
    """A Weights & Biases export as a table: `TrialTable.read` with its reader named.

    Args:
        path: `.csv`, the runs table's export or the one of W&B's export guide (summary, config, name); `.json` or
            `.jsonl`, runs with `config`, `summary` and perhaps `history`, as the public API gives them.
        columns: our name → W&B's, or a number; names of nested values are joined by dots ("optimizer.lr").
        units: as `TrialTable.from_frame`.
        sequence_length: tokens in a sequence.
        history: {"tokens": key, "loss": key} of the histories, where they differ from the summary's.

    Raises:
        TableError: not such an export, or a run lacks a column.
    """
    if history is not None:
        if set(history) != {"tokens", "loss"}:
            raise ValueError(f"history must name 'tokens' and 'loss', got {dict(history)!r}")
        columns = {**history, **columns}
    return TrialTable.read(path, columns, units=units, sequence_length=sequence_length, format="wandb")
