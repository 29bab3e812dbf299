"""The losses that a program printed or wrote: JSON lines, dictionaries, text, CSV, TensorBoard events, W&B runs.

Whole files are read again at each look, for they may be rewritten. Which of the names in them is the loss's is said in
`loss_rows`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from metaopt_hpo.trials.quantities import flatten, loss_unit
from metaopt_hpo.trials.schema import TableError
from metaopt_hpo.workloads.earlier import Earlier
from metaopt_hpo.workloads.loss_rows import Reported as Reported
from metaopt_hpo.workloads.loss_rows import choose
from metaopt_hpo.workloads.printed import COLOURS, said

DECIMAL_COMMA = re.compile(r"^\s*([-+]?\d+),(\d+)\s*$")
"""Where semicolons part the columns, commas part the digits."""


def find(
    logs: Iterable[Path],
    folder: Path,
    *,
    batch: float,
    losses: Path | None = None,
    metric: str = "",
    earlier: Earlier | None = None,
) -> Reported | None:
    """The losses of a run; None where there are none (yet).

    Args:
        logs: what it printed, likeliest first.
        folder: what it may have written to.
        batch: tokens a step, for programs that count steps.
        losses: the file or folder that holds them, where the user has named it.
        earlier: what `losses` held before the run, where it is not the run's own.
        metric: the loss's name, where the user has named it; a perplexity or bits by its name is told in nats.

    Raises:
        TableError: a library that reads the format is missing, a finished file is damaged, or a perplexity is below 1.
    """
    if losses is not None:
        return _from_path(losses, batch, metric, earlier)
    for log in logs:
        if found := choose(list(_printed(log, metric)), batch, metric, log):
            return found
    for path in _candidates(folder):
        if found := _from_path(path, batch, metric):
            return found
    return None


def unread(logs: Iterable[Path]) -> list[str]:
    """Names in what a program printed that may be its loss, of which none was read: `ppl`, `best_val_loss`."""
    rows = (row for log in logs for row in _printed(log, ""))
    return list(dict.fromkeys(n for row in rows for n in row if "loss" in n.lower() or loss_unit(n)))


def _from_path(path: Path, batch: float, metric: str, earlier: Earlier | None = None) -> Reported | None:
    if not path.exists():
        return None
    return choose(list(_written(path, metric, earlier)), batch, metric, path)


def _candidates(folder: Path) -> Iterator[Path]:
    """Files of the run's folder that may hold losses, in a fixed order."""
    for pattern in ("*.jsonl", "*.ndjson", "*.csv", "*.tsv", "trainer_state.json", "*.json"):
        yield from sorted(
            p for p in folder.rglob(pattern) if p.is_file() and len(p.relative_to(folder).parts) <= 4
        )
    for pattern in ("*tfevents*", "*.wandb"):
        yield from sorted({p.parent for p in folder.rglob(pattern) if p.is_file()})


# -- rows ----------------------------------------------------------------------------------------------------


def _text(path: Path, earlier: Earlier | None, *, header: bool = False) -> str:
    data = path.read_bytes()
    if earlier is not None:
        data = earlier.since(path, data, header=header)
    return data.decode("utf-8", errors="replace")


def _printed(log: Path, metric: str, earlier: Earlier | None = None) -> Iterator[dict[str, Any]]:
    try:
        text = _text(log, earlier)
    except FileNotFoundError:
        return
    for line in re.split(r"[\r\n]+", COLOURS.sub("", text)):  # progress bars end their lines with \r
        row = said(line.strip(), metric)
        if row:
            yield row


def _written(path: Path, metric: str, earlier: Earlier | None = None) -> Iterator[dict[str, Any]]:
    suffix = path.suffix.lower()
    if path.is_file() and suffix in (".jsonl", ".ndjson", ".log", ".txt", ".out"):
        yield from _printed(path, metric, earlier)
    elif path.is_file() and suffix in (".csv", ".tsv"):
        yield from _csv(_text(path, earlier, header=True), "\t" if suffix == ".tsv" else ",")
    elif path.is_file() and suffix == ".json":
        yield from _json(path, metric, earlier)
    else:
        from metaopt_hpo.trials.readers import open_export

        try:
            rows = open_export(path).sample().to_dict("records")
        except TableError as error:
            if "pip install" in str(error):
                raise
            return  # not written to yet
        for row in rows:
            yield {str(k): v for k, v in row.items() if not (isinstance(v, float) and math.isnan(v))}


def _csv(text: str, delimiter: str) -> Iterator[dict[str, Any]]:
    complete = text[: text.rfind("\n") + 1]  # the last line may be half written
    head = complete.partition("\n")[0]
    continental = delimiter == "," and ";" in head and "," not in head
    try:
        for row in csv.DictReader(io.StringIO(complete), delimiter=";" if continental else delimiter):
            cells = {k: v for k, v in row.items() if k is not None and v not in (None, "")}
            yield {k: DECIMAL_COMMA.sub(r"\1.\2", v) for k, v in cells.items()} if continental else cells
    except csv.Error:  # no table from here on
        return


def _json(path: Path, metric: str, earlier: Earlier | None) -> Iterator[dict[str, Any]]:
    try:
        data = json.loads(_text(path, earlier))
    except (ValueError, RecursionError):
        yield from _printed(path, metric, earlier)
        return
    if isinstance(data, dict):
        data = data.get("log_history") or data.get("history") or [data]
    for row in data if isinstance(data, list) else []:
        if isinstance(row, dict):
            yield flatten({str(k): v for k, v in row.items()})
