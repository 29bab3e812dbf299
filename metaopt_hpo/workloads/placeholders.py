"""Placeholders in a command line: which there are, and how a text is filled in."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

from metaopt_hpo.errors import MetaOptError

PLACEHOLDERS = {
    "size": "trainable non-embedding parameters",
    "tokens": "training tokens",
    "batch": "tokens per optimizer step",
    "steps": "optimizer steps",
    "sequences": "sequences per optimizer step (needs sequence_length)",
    "lr": "learning rate",
    "seed": "seed",
    "strategy": "how lr is set: wsd, cosine …, or metaoptimize, where the program can",
    "out": "a folder of the run's own, kept where the run is retried or goes on",
}
"""What a command line may name; the knob that sets the size (`width` unless said otherwise) comes on top."""


class JobError(MetaOptError):
    """A training program that cannot be run as it was described, or that says no loss."""


def names_in(text: str) -> list[str]:
    """The placeholders that a text names.

    Raises:
        JobError: its braces are none of a placeholder's.
    """
    try:
        return [re.split(r"[.\[]", n)[0] for _, n, _, _ in string.Formatter().parse(text) if n is not None]
    except ValueError as error:
        raise JobError(
            f"{text!r} cannot be filled in ({error}); write a brace that is meant as {{{{ or }}}}"
        ) from None


def fill(text: str, settings: Mapping[str, Any]) -> str:
    """The text with its placeholders replaced; a value stays one argument.

    Raises:
        ValueError: it asks for more than a placeholder's value.
    """
    for _, name, _, _ in string.Formatter().parse(text):
        if name is not None and not name.isidentifier():  # no attributes, no items of values
            raise ValueError(f"{{{name}}} is not a placeholder's name")
    return text.format(**settings)


def plain(value: Any) -> Any:
    """Whole numbers as int, so that `{steps}` is 512 and not 512.0."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return int(value)
    return value
