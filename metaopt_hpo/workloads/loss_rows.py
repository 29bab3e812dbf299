"""The loss among the rows that a program printed or wrote: its name, its points, and what it says of the end.

Names are those of `trials.quantities`: a held-out loss (`val_loss`, `eval/loss`) is preferred to `loss`, that to a
training loss; tokens are preferred to steps. `final_val_loss` is `val_loss` at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    loss_unit,
    normalise,
    parts,
)
from metaopt_hpo.trials.schema import TableError
from metaopt_hpo.workloads.printed import HELD_OUT, TRAINING

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
FINAL = "final_"
"""Before a loss's name: the loss at the end."""

NOISY_FROM = 20
"""A training loss of at least so many reports is averaged over its end: one batch's loss says little."""

END = 0.05
"""Fraction of the run over which it is averaged."""


@dataclass(frozen=True)
class Reported:
    """What was found.

    Attributes:
        name: the loss's own name.
        points: (tokens, loss), ascending; tokens are NaN throughout where the program does not say them.
        source: file it was found in.
        end: what it says of the end beside them, as `final_val_loss`; None where it says nothing.
        remark: what of its losses was not read, in a sentence; empty where all was.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    source: str
    end: float | None = None
    remark: str = ""

    @property
    def held_out(self) -> bool:
        """Whether the name says that the loss was measured on held-out data."""
        return _rank(self.name) == 0 or not set(HELD_OUT_WORDS).isdisjoint(normalise(self.name).split("_"))

    @property
    def final(self) -> float:
        """The loss said of the end; else the last one, of a training loss the mean of the last twentieth."""
        if self.end is not None:
            return self.end
        losses = [loss for _, loss in self.points]
        if self.held_out or len(losses) < NOISY_FROM or not math.isfinite(losses[-1]):
            return losses[-1]
        last = losses[-max(1, round(END * len(losses))) :]
        return math.fsum(last) / len(last)


def _rank(name: str) -> int | None:
    """0 for a held-out loss, 1 for `loss`, 2 for a training loss; None for what is none."""
    rest, whole = parts(name)[1].removeprefix(FINAL), normalise(name).removeprefix(FINAL)
    for rank, known in enumerate((HELD_OUT, ("loss",), TRAINING)):
        if rest in known or whole in known:
            return rank
    return None


def choose(rows: list[dict[str, Any]], batch: float, metric: str, source: Path) -> Reported | None:
    """The loss of these rows, in their order; None where they hold none.

    Args:
        rows: names and values of each line.
        batch: tokens a step, for programs that count steps.
        metric: the loss's name, where the user has named it.
        source: what the rows are from.

    Raises:
        TableError: a perplexity is below 1.
    """
    name = _loss_name(rows, metric)
    if name is None:
        return None
    told: dict[float, float] = {}
    untold: list[float] = []
    end = left = None
    for row in rows:
        value, tokens = _nats(_number(at(row, name)), name, source), _tokens(row, batch)
        if value is not None and tokens is not None:
            # a run that went on from its checkpoint says some steps twice: the later counts
            told[tokens], end, left = value, None, None
        elif value is not None:
            untold.append(value)
            left = value
        for other, number in row.items():
            if "final" in other.lower() and normalise(other) == FINAL + normalise(name):
                value = _nats(_number(number), other, source)
                end = end if value is None else value
    if not told:
        return Reported(name, tuple((math.nan, v) for v in untold), str(source), end) if untold else None
    remark = "" if metric else _better(rows, name)
    if left is not None and end is None:
        remark = (
            f"{name} {left:.4g}, said without a step after those with one, was not read: say its step, or call it "
            f"final_{name}"
        )
    return Reported(name, tuple(sorted(told.items())), str(source), end, remark)


def _better(rows: list[dict[str, Any]], name: str) -> str:
    """What to say where a training loss is read and a perplexity on held-out data is not; empty where nothing."""
    if _rank(name) == 0:
        return ""
    for other in (n for row in rows for n, value in row.items() if _number(value) is not None):
        words = normalise(other).split("_")
        if loss_unit(other) in ("perplexity", "bits") and not set(HELD_OUT_WORDS).isdisjoint(words):
            return f"the loss read is {name}, and {other} is on held-out data: name that with metric={other}"
    return ""


def _loss_name(rows: list[dict[str, Any]], metric: str) -> str | None:
    if metric:
        same = (n for row in rows for n in row if normalise(n) == normalise(metric))
        return next(
            (n for n in (metric, *same) if any(_number(at(row, n)) is not None for row in rows)), None
        )
    ranked = {
        name: (rank, normalise(name).startswith(FINAL))
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
