"""Tables and logs that other tools wrote: one file a tool's exports; `trials.exports` finds whose a file is."""

from __future__ import annotations

import os
from collections.abc import Mapping

from metaopt_hpo.trials.exports import names as names
from metaopt_hpo.trials.exports import open_export as open_export
from metaopt_hpo.trials.readers.base import Export as Export
from metaopt_hpo.trials.readers.base import Reader as Reader
from metaopt_hpo.trials.table import TrialTable


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
