"""Headers and states in JSON of what is saved of trials, and the error where a file is foreign, newer or damaged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from metaopt_hpo.errors import MetaOptError

FORMAT = "metaopt-hpo ray journal"
VERSION = 3
"""3: times, reasons of launches, and fields that a report may leave out."""


class BookError(MetaOptError):
    """A journal or a saved state is not one of ours, or is damaged."""


def read_state(path: str | PathLike[str], whose: str, take: Callable[[Any], None]) -> None:
    """Give `take` what `path` holds in JSON.

    Args:
        whose: who saved it, for the message.

    Raises:
        BookError: there is no such file, it is damaged, or it is something else's.
    """
    try:
        take(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise BookError(
            f"the saved state of {whose}, {path}, cannot be read: {error.strerror or error}"
        ) from error
    except (
        MetaOptError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BookError(
            f"{path} is no saved state of {whose}, or a damaged one ({reason:.200}); begin without it, or restore the "
            "file"
        ) from error


def header() -> str:
    """The first line of a journal."""
    return json.dumps({"format": FORMAT, "version": VERSION})


def check_header(state: Any) -> None:
    """Raise BookError unless `state` says that it is ours and not of a newer version."""
    if not isinstance(state, Mapping) or state.get("format") != FORMAT:
        raise BookError("this is not a journal of trials of metaopt-hpo")
    if not isinstance(state.get("version"), int) or state["version"] > VERSION:
        raise BookError(
            f"the journal of trials has version {state.get('version')!r}, this installation reads up to {VERSION}; "
            "upgrade metaopt-hpo"
        )


def parse(line: str) -> dict[str, Any] | None:
    """A line's object; None where it is damaged."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
