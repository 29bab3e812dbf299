"""One process at a time: a lock on a results folder, a table or a study, which ends with the process that holds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from metaopt_hpo.errors import MetaOptError

PATIENCE = 10.0
"""Seconds to wait for a lock: a killed process's workers need a moment to end after it."""


class InUse(MetaOptError):
    """Another process works on the same results."""


@contextmanager
def only_process(lock: str | os.PathLike[str], what: str, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock file for the block; the operating system releases it when the process ends, however it ends.

    Args:
        lock: the lock file; it stays, and is empty. Its folder is made where it is missing.
        what: what is locked, for the message.
        patience: seconds to wait where another process holds it.

    Raises:
        InUse: it still does.
        MetaOptError: the lock file cannot be made.
    """
    path = Path(lock)
    held = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=patience)
    except Timeout:
        raise InUse(
            f"{what} is in use by another process; wait until it has ended, or choose another place"
        ) from None
    except OSError as error:
        raise MetaOptError(f"cannot lock {what}: {error.strerror or error}; choose another place") from error
    try:
        yield
    finally:
        held.release()
