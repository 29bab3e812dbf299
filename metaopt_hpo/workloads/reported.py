"""The losses that a program printed or wrote: JSON lines, dictionaries, text, CSV, TensorBoard events, W&B runs.

Names are those of `trials.quantities`: a held-out loss (`val_loss`, `eval/loss`) is preferred to `loss`, that to a
training loss; tokens are preferred to steps. Whole files are read again at each look, for they may be rewritten.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaopt_hpo.trials.quantities import (
    HELD_OUT as HELD_OUT_WORDS,
)
from metaopt_hpo.trials.quantities import (
    PROGRESS_STEPS,
    PROGRESS_TOKENS,
    at,
    flatten,
    loss_unit,
    normalise,
    parts,
)
from metaopt_hpo.trials.schema import TableError
from metaopt_hpo.workloads.earlier import Earlier
from metaopt_hpo.workloads.printed import COLOURS, HELD_OUT, TRAINING, said

STEPS = (
    *PROGRESS_STEPS,
    "iter",
    "iteration",
    "global_steps",
    "training_step",
    "train_step",
    "update",
    "num_updates",
)
NOISY_FROM = 20
"""A training loss of at least so many reports is averaged over its end: one batch's loss says little."""

DECIMAL_COMMA = re.compile(r"^\s*([-+]?\d+),(\d+)\s*$")
"""Where semicolons part the columns, commas part the digits."""

END = 0.05
"""Fraction of the run over which it is averaged."""


@dataclass(frozen=True)
class Reported:
    """What was found.

    Attributes:
        name: the loss's own name.
        points: (tokens, loss), ascending; tokens are NaN throughout where the program does not say them.
        source: file it was found in.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    source: str

    @property
    def held_out(self) -> bool:
        """Whether the name says that the loss was measured on held-out data."""
        return _rank(self.name) == 0 or not set(HELD_OUT_WORDS).isdisjoint(normalise(self.name).split("_"))

    @property
    def final(self) -> float:
        """The loss at the end: the last report, or the mean over the last twentieth of a training loss."""
        losses = [loss for _, loss in self.points]
        if self.held_out or len(losses) < NOISY_FROM or not math.isfinite(losses[-1]):
            return losses[-1]
        last = losses[-max(1, round(END * len(losses))) :]
        return math.fsum(last) / len(last)


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
        if found := _choose(list(_printed(log, metric)), batch, metric, log):
            return found
    for path in _candidates(folder):
        if found := _from_path(path, batch, metric):
            return found
    return None


def _from_path(path: Path, batch: float, metric: str, earlier: Earlier | None = None) -> Reported | None:
    if not path.exists():
        return None
    return _choose(list(_written(path, metric, earlier)), batch, metric, path)


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


# -- names ---------------------------------------------------------------------------------------------------


def _rank(name: str) -> int | None:
    """0 for a held-out loss, 1 for `loss`, 2 for a training loss; None for what is none."""
    rest, whole = parts(name)[1], normalise(name)
    for rank, known in enumerate((HELD_OUT, ("loss",), TRAINING)):
        if rest in known or whole in known:
            return rank
    return None


def _choose(rows: list[dict[str, Any]], batch: float, metric: str, source: Path) -> Reported | None:
    name = _loss_name(rows, metric)
    if name is None:
        return None
    told: dict[float, float] = {}
    untold: list[float] = []
    for row in rows:
        value = _nats(_number(at(row, name)), name, source)
        if value is None:
            continue
        tokens = _tokens(row, batch)
        if tokens is None:
            untold.append(value)
        else:
            told[tokens] = (
                value  # a run that went on from its checkpoint says some steps twice: the later counts
            )
    if told:
        return Reported(name, tuple(sorted(told.items())), str(source))
    return Reported(name, tuple((math.nan, v) for v in untold), str(source)) if untold else None


def _loss_name(rows: list[dict[str, Any]], metric: str) -> str | None:
    if metric:
        same = (n for row in rows for n in row if normalise(n) == normalise(metric))
        return next(
            (n for n in (metric, *same) if any(_number(at(row, n)) is not None for row in rows)), None
        )
    ranked = {
        name: rank
        for row in rows
        for name, value in row.items()
        if (rank := _rank(name)) is not None and _number(value) is not None
    }
    return min(ranked, key=lambda n: ranked[n]) if ranked else None


def _nats(value: float | None, name: str, source: Path) -> float | None:
    unit = loss_unit(name)
    if value is None or unit not in ("perplexity", "bits"):
        return value
    if unit == "bits":
        return value * math.log(2.0)
    if value < 1.0:
        raise TableError(
            f"{name} is {value:g} in {source}, and no perplexity is below 1; name the loss with metric"
        )
    return math.log(value)


def _tokens(row: Mapping[str, Any], batch: float) -> float | None:
    for known, unit in ((PROGRESS_TOKENS, 1.0), (STEPS, batch)):
        for wanted in known:
            for name, value in row.items():
                if wanted in (parts(name)[1], normalise(name)):
                    number = _number(value)
                    if number is not None and number >= 0 and math.isfinite(number * unit):
                        return number * unit
    return None


def _number(value: Any) -> float | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        return None
