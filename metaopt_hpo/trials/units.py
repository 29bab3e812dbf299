"""Units of a table's columns that a user names, as factors or by another quantity."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from metaopt_hpo.trials.schema import TableError, rows_text
from metaopt_hpo.trials.values import objects

FACTORS = {"thousands": 1e3, "millions": 1e6, "billions": 1e9, "trillions": 1e12}

BITS = math.log(2.0)
"""Nats of a bit."""

RELATIVE = ("sequences", "per_parameter", "chinchilla", "epochs")
"""Units that need another quantity: a sequence's length, the run's size, the data's unique tokens."""

CHINCHILLA = 20.0
"""Tokens a parameter of one Chinchilla multiple (Hoffmann et al. 2022)."""


LOSSES = ("loss", "curve_loss")
"""Columns whose unit is that of the loss."""


def factor(name: str, unit: float | str, sequence_length: float | None) -> float | None:
    """What a column is multiplied by; None for a unit of another quantity (`RELATIVE`, but sequences).

    Raises:
        ValueError: an unknown unit, or sequences without their length.
    """
    if isinstance(unit, str):
        if unit == "sequences":
            if sequence_length is None or not sequence_length > 0:
                raise ValueError(
                    f"units of {name!r} are sequences: pass sequence_length=… (tokens in a sequence)"
                )
            return float(sequence_length)
        if unit in FACTORS:
            return FACTORS[unit]
        if unit == "bits" and name in LOSSES:
            return BITS
        if unit == "perplexity" and name in LOSSES:
            return None
        if unit in RELATIVE and name in ("tokens", "target_tokens", "curve_tokens"):
            return None
        raise ValueError(
            f"unit of {name!r} must be a number, one of {', '.join(sorted(FACTORS))} or sequences"
            + (", or for a loss bits or perplexity" if name in LOSSES else "")
            + (", per_parameter, chinchilla or epochs" if name == "tokens" else "")
            + f", got {unit!r}"
        )
    if not (math.isfinite(unit) and unit > 0):
        raise ValueError(f"unit of {name!r} must be a positive factor, got {unit!r}")
    return float(unit)


def relative(frame: pd.DataFrame, units: Mapping[str, float | str]) -> None:
    """Tokens counted per parameter, in Chinchilla multiples or in epochs as tokens, and perplexities as nats.

    Raises:
        TableError: epochs without the data's tokens, or a perplexity below 1.
    """
    if units.get("loss") == "perplexity":
        given = frame["loss"].to_numpy(dtype=float)
        low = given < 1.0
        if low.any():
            raise TableError(f"{rows_text(low)} have a perplexity below 1, which none is; correct them")
        frame["loss"] = np.log(given)
        frame["curve_loss"] = objects(
            [v and tuple(math.log(max(x, 1.0)) for x in v) for v in frame["curve_loss"]]
        )
    for name in ("tokens", "target_tokens"):
        unit = units.get(name)
        if unit in ("per_parameter", "chinchilla"):
            each = CHINCHILLA if unit == "chinchilla" else 1.0
            frame[name] = frame[name] * frame["size"] * each
        elif unit == "epochs":
            if not np.isfinite(frame["unique_tokens"]).any():
                raise TableError(
                    f"{name!r} counts epochs: name the data's tokens with columns={{'unique_tokens': …}}, a column or "
                    "one number"
                )
            frame[name] = frame[name] * frame["unique_tokens"]
