"""What Tune itself leaves of each trial, `params.json` and `result.json`: read where the journal is lost or damaged."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pyarrow.fs  # type: ignore[import-untyped]

from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.logbook_file import parse
from metaopt_hpo.trials.logged_results import ENDED, Results, report
from metaopt_hpo_ray.columns import Columns, describe


def read_text(files: Any, path: str) -> str:
    with files.open_input_stream(path) as stream:
        return bytes(stream.readall()).decode("utf-8", errors="replace")


def objects(text: str) -> list[dict[str, Any]]:
    """The objects of JSON lines; damaged ones are passed over."""
    return [row for line in text.splitlines() if (row := parse(line)) is not None]


def _folders(files: Any, folder: str) -> Iterator[tuple[str, str, set[str]]]:
    """Path, name and files' names of each trial's folder."""
    for info in files.get_file_info(pyarrow.fs.FileSelector(folder)):
        if info.type == pyarrow.fs.FileType.Directory:
            names = {i.base_name for i in files.get_file_info(pyarrow.fs.FileSelector(info.path))}
            if "params.json" in names:
                yield info.path, info.base_name, names


def fill_in_configs(files: Any, folder: str, columns: Columns, book: Logbook) -> int:
    """Fill in the configs that a damaged journal lacks from the trials' own files; how many there were."""
    lacking = {key for key, e in book.entries.items() if e.missing}
    found = 0
    for path, name, _ in _folders(files, folder) if lacking else ():
        key = next((k for k in lacking if k in name), None)
        config = parse(read_text(files, f"{path}/params.json")) if key is not None else None
        if key is not None and config is not None:
            book.add(key, **describe(config, columns))
            found += 1
    return found


def read_trials(
    files: Any, folder: str, columns: Columns, results: Results, *, ended: bool = True
) -> Logbook:
    """The book that the trials' `params.json` and `result.json` describe.

    Args:
        ended: False where the experiment goes on, and Tune knows which of its trials have ended.
    """
    book = Logbook()
    for path, name, names in _folders(files, folder):
        config = parse(read_text(files, f"{path}/params.json"))
        if config is None or "result.json" not in names:
            continue
        rows = objects(read_text(files, f"{path}/result.json"))
        key = str(rows[-1].get("trial_id", name)) if rows else name
        book.add(key, **describe(config, columns))
        for row in rows:
            tokens, loss = results.tokens(row), results.loss(row)
            if tokens is not None:
                report(book, key, tokens, math.nan if loss is None else loss, row)
        if "error.txt" in names and ended:
            book.close(key, "failed", "Tune recorded an error")
        elif rows and ended:
            results.close(book, key, rows[-1], ended_by=ENDED)
    return book
