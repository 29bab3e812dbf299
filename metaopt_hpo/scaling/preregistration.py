"""Predictions written down before the run: with their date, what they rest on and their interval; scored afterwards.

A prediction that nobody wrote down is always right in hindsight. The file holds everything that a reader needs to score
it: the law's fingerprint, the trials behind it, the configuration, the intervals and the warnings it carried.
"""

from __future__ import annotations

import datetime
import hashlib
import math
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metaopt_hpo.atomic import write_text
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling.estimates import Estimate
from metaopt_hpo.scaling.law import Law

FORMAT: Literal["metaopt-hpo prediction"] = "metaopt-hpo prediction"

Positive = Annotated[float, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True, extra="forbid")


class Interval(_Part):
    """A predicted value and its interval."""

    value: Positive
    low: Positive
    high: Positive

    def holds(self, value: float) -> bool:
        """Whether a value that was found lies inside."""
        return self.low <= value <= self.high


class Registered(_Part):
    """A prediction made at a known time.

    Attributes:
        made: UTC, to the second.
        law: SHA-256 of the law's content.
        trials: how many runs it was fitted to; `largest` is the largest (size, tokens) among them.
        size, tokens: of the run that is predicted (parameters, tokens).
        lr, batch, loss: predicted, with intervals at `level`.
        warnings: codes of what the law said against itself.
    """

    format: Literal["metaopt-hpo prediction"] = FORMAT
    made: str
    law: str
    trials: int
    largest: tuple[Positive, Positive]
    level: Annotated[float, Field(gt=0, lt=1)]
    size: Positive
    tokens: Positive
    lr: Interval
    batch: Interval
    loss: Interval
    warnings: tuple[str, ...]

    def score(self, loss: float) -> Score:
        """How well the loss was predicted.

        Args:
            loss: held-out loss of the run, in the unit of the trials behind the law.
        """
        if not (math.isfinite(loss) and loss > 0):
            raise ValueError(f"loss must be a finite number > 0, got {loss!r}")
        return Score(self, loss)


class Score:
    """A registered prediction beside what was found."""

    def __init__(self, registered: Registered, loss: float) -> None:
        self.registered = registered
        self.loss = loss
        self.error = registered.loss.value / loss - 1.0
        """Relative error of the predicted loss; positive where it was too high."""
        self.inside = registered.loss.holds(loss)
        """Whether the loss lies in the interval."""

    def __str__(self) -> str:
        r = self.registered
        size, tokens = r.largest
        return (
            f"registered {r.made}: loss {r.loss.value:.4f} "
            f"({r.level:.0%} interval {r.loss.low:.4f} to {r.loss.high:.4f}), "
            f"{r.size * r.tokens / (size * tokens):.3g} times the compute of the largest fitted cell\n"
            f"found {self.loss:.4f}: the prediction was {abs(self.error):.2%} "
            f"too {'high' if self.error > 0 else 'low'}, "
            f"and the loss lies {'inside' if self.inside else 'outside'} the interval"
        )


def register(
    law: Law,
    *,
    size: float,
    tokens: float,
    batch: float | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Registered:
    """Predict and write the prediction down.

    Args:
        law: fitted to the trials so far.
        size, tokens, batch: of the run to come, as in `Law.predict`.
        path: where to write it (JSON); one that exists is never replaced.

    Raises:
        MetaOptError: the file exists, or cannot be written.
    """
    if path is not None and Path(path).exists():
        raise MetaOptError(
            f"{str(path)!r} exists: a registered prediction is never replaced; give another name"
        )
    p = law.predict(size, tokens, batch)
    product = law.cells["size"] * law.cells["tokens"]
    most = int(product.argmax())
    found = Registered(
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        law=hashlib.sha256(law.to_json().encode()).hexdigest(),
        trials=law.trials,
        largest=(float(law.cells["size"][most]), float(law.cells["tokens"][most])),
        level=law.level,
        size=float(size),
        tokens=float(tokens),
        lr=_interval(p.lr),
        batch=_interval(p.batch),
        loss=_interval(p.loss),
        warnings=tuple(w.code for w in p.warnings),
    )
    if path is not None:
        write_text(path, found.model_dump_json(indent=1) + "\n")
    return found


def read(path: str | os.PathLike[str]) -> Registered:
    """A prediction that `register` wrote.

    Raises:
        MetaOptError: the file is missing, or is no registered prediction.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise MetaOptError(f"cannot read a prediction from {str(path)!r}: {e}") from e
    try:
        return Registered.model_validate_json(text)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise MetaOptError(
            f"{str(path)!r} is no registered prediction ({where}: {first['msg']}); "
            "write one with metaopt-hpo register"
        ) from e


def _interval(e: Estimate) -> Interval:
    return Interval(value=float(e.value), low=float(e.low), high=float(e.high))
