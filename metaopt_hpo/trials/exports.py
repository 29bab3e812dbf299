"""Finds who wrote what lies at a path: the readers of `trials.readers` first, then those of other distributions.

A reader gives rows in the tool's own names; `trials.conform` makes the table of them, whoever wrote it.
"""

from __future__ import annotations

import os
import pkgutil
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from metaopt_hpo.trials.quantities import did_you_mean
from metaopt_hpo.trials.schema import TableError

if TYPE_CHECKING:
    from metaopt_hpo.trials.readers.base import Export, Reader


def own_readers() -> list[Reader]:
    """Those of this package, in the order in which they are asked: each module of `trials.readers` with a `READER`."""
    folder = import_module("metaopt_hpo.trials.readers")
    modules = (import_module(f"{folder.__name__}.{m.name}") for m in pkgutil.iter_modules(folder.__path__))
    found = [m.READER for m in modules if hasattr(m, "READER")]
    return sorted(found, key=lambda reader: (reader.asked, reader.name))


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
        return own_readers()[-1].read(text)  # says which kinds of files it knows
    raise TableError(
        f"{text!r} holds nothing that a reader knows: {', '.join(names())}; give the folder of the runs themselves, or "
        "their table as CSV, Parquet or JSON"
    )
