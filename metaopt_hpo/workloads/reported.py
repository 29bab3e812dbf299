"""The losses that a program printed or wrote: JSON lines, dictionaries, text, CSV, TensorBoard events, W&B runs.

Names are those of `trials.quantities`: a held-out loss (`val_loss`, `eval/loss`) is preferred to `loss`, that to a
training loss; tokens are preferred to steps. Whole files are read again at each look, for they may be rewritten.
"""

from __future__ import annotations

import ast
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
    PROGRESS_STEPS,
    PROGRESS_TOKENS,
    QUANTITIES,
    at,
    flatten,
    normalise,
    parts,
)
from metaopt_hpo.trials.schema import TableError

STEPS = (*PROGRESS_STEPS, "iter", "global_steps", "training_step", "train_step", "update", "num_updates")
NOISY_FROM = 20
"""A training loss of at least so many reports is averaged over its end: one batch's loss says little."""

END = 0.05
"""Fraction of the run over which it is averaged."""

NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf(?:inity)?)"
WORDS = re.compile(
    rf"(?<![A-Za-z0-9_/.])([A-Za-z][A-Za-z_/. -]{{0,30}}?)\s*[:= ]\s*({NUMBER})(?![A-Za-z0-9_])",
    re.IGNORECASE,
)


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
        return _rank(self.name) == 0

    @property
    def final(self) -> float:
        """The loss at the end: the last report, or the mean over the last twentieth of a training loss."""
        losses = [loss for _, loss in self.points]
        if self.held_out or len(losses) < NOISY_FROM or not math.isfinite(losses[-1]):
            return losses[-1]
        last = losses[-max(1, round(END * len(losses))) :]
        return math.fsum(last) / len(last)


def find(
    logs: Iterable[Path], folder: Path, *, batch: float, losses: Path | None = None, metric: str = ""
) -> Reported | None:
    """The losses of a run; None where there are none (yet).

    Args:
        logs: what it printed, likeliest first.
        folder: what it may have written to.
        batch: tokens a step, for programs that count steps.
        losses: the file or folder that holds them, where the user has named it.
        metric: the loss's name, where the user has named it.

    Raises:
        TableError: a library that reads the format is missing, or a finished file is damaged.
    """
    if losses is not None:
        return _from_path(losses, batch, metric)
    for log in logs:
        if found := _choose(list(_printed(log)), batch, metric, log):
            return found
    for path in _candidates(folder):
        if found := _from_path(path, batch, metric):
            return found
    return None


def _from_path(path: Path, batch: float, metric: str) -> Reported | None:
    if not path.exists():
        return None
    return _choose(list(_written(path)), batch, metric, path)


def _candidates(folder: Path) -> Iterator[Path]:
    """Files of the run's folder that may hold losses, in a fixed order."""
    for pattern in ("*.jsonl", "*.ndjson", "*.csv", "*.tsv", "trainer_state.json", "*.json"):
        yield from sorted(
            p for p in folder.rglob(pattern) if p.is_file() and len(p.relative_to(folder).parts) <= 4
        )
    for pattern in ("*tfevents*", "*.wandb"):
        yield from sorted({p.parent for p in folder.rglob(pattern) if p.is_file()})


# -- rows ----------------------------------------------------------------------------------------------------


def _printed(log: Path) -> Iterator[dict[str, Any]]:
    try:
        text = log.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return
    for line in re.split(r"[\r\n]+", text):  # progress bars end their lines with \r
        row = _line(line.strip())
        if row:
            yield row


def _line(line: str) -> dict[str, Any] | None:
    start = line.find("{")
    if start >= 0 and line.endswith("}"):
        row = _mapping(line[start:])
        if row is not None:
            return row
    found = {name.strip(): value for name, value in WORDS.findall(line)}
    if not any("loss" in name.lower() for name in found):
        return None
    return {_last_words(k): float(v) for k, v in found.items()}


def _last_words(name: str) -> str:
    """`[rank0] 12:00 epoch done, val loss` is called `val loss`: no more than the last two words."""
    words = name.split()
    keep = 2 if len(words) > 1 and normalise("_".join(words[-2:])) in _LOSS_NAMES else 1
    return "_".join(words[-keep:]) if words else name


def _mapping(text: str) -> dict[str, Any] | None:
    for read in (json.loads, _literal):
        try:
            row = read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if isinstance(row, dict):
            return flatten({str(k): v for k, v in row.items()})
    return None


def _literal(text: str) -> Any:
    return ast.literal_eval(re.sub(r"(?<=[:\s])-?(?:nan|inf)(?=[,}\s])", '"nan"', text))


def _written(path: Path) -> Iterator[dict[str, Any]]:
    suffix = path.suffix.lower()
    if path.is_file() and suffix in (".jsonl", ".ndjson", ".log", ".txt", ".out"):
        yield from _printed(path)
    elif path.is_file() and suffix in (".csv", ".tsv"):
        yield from _csv(path, "\t" if suffix == ".tsv" else ",")
    elif path.is_file() and suffix == ".json":
        yield from _json(path)
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


def _csv(path: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    text = path.read_bytes().decode("utf-8", errors="replace")
    complete = text[: text.rfind("\n") + 1]  # the last line may be half written
    try:
        for row in csv.DictReader(io.StringIO(complete), delimiter=delimiter):
            yield {k: v for k, v in row.items() if k is not None and v not in (None, "")}
    except csv.Error:  # no table from here on
        return


def _json(path: Path) -> Iterator[dict[str, Any]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError):
        yield from _printed(path)
        return
    if isinstance(data, dict):
        data = data.get("log_history") or data.get("history") or [data]
    for row in data if isinstance(data, list) else []:
        if isinstance(row, dict):
            yield flatten({str(k): v for k, v in row.items()})


# -- names ---------------------------------------------------------------------------------------------------

_HELD_OUT = (*QUANTITIES["loss"].strong, "test_loss")
_TRAINING = tuple(n for n in QUANTITIES["loss"].weak if "loss" in n)
_LOSS_NAMES = {"loss", *_HELD_OUT, *_TRAINING}


def _rank(name: str) -> int | None:
    """0 for a held-out loss, 1 for `loss`, 2 for a training loss; None for what is none."""
    rest, whole = parts(name)[1], normalise(name)
    for rank, known in enumerate((_HELD_OUT, ("loss",), _TRAINING)):
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
        value = _number(at(row, name))
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
        return metric if any(_number(at(row, metric)) is not None for row in rows) else None
    ranked = {
        name: rank
        for row in rows
        for name, value in row.items()
        if (rank := _rank(name)) is not None and _number(value) is not None
    }
    return min(ranked, key=lambda n: ranked[n]) if ranked else None


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
