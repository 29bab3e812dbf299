"""What a plan borrows strength from: tables, laws' files, and names of the library's fitted laws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metaopt_hpo.scaling.api import Law
from metaopt_hpo.scaling.base.sources import BaseLike
from metaopt_hpo.trials.table import TrialTable


def base_from(names: Sequence[str]) -> list[BaseLike]:
    """What a plan borrows strength from, read."""
    return [_base(n) for n in names]


def _base(name: str) -> BaseLike:
    """A file's law or table, or the name of a law of the library."""
    path = Path(name)
    if not path.is_file():
        return name
    return Law.from_json(path) if path.suffix == ".json" else TrialTable.read(path)
