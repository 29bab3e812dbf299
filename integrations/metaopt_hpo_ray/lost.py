"""Checkpoints that have vanished: found before Tune asks a trial to go on from one, and made good.

Tune refuses to restore a trial whose checkpoint is gone, and spends all its retries on refusing. Without any
checkpoint it starts the trial again at its first step and says nothing. Here the newest of the trial's kept
checkpoints that is still there is taken instead; where none is, the trial starts again; and either is said in its
row of the table. What it had spent before counts as ever.
"""

from __future__ import annotations

from typing import Any

import pyarrow.fs  # type: ignore[import-untyped]

from metaopt_hpo_ray import _compat

NONE_SAVED = "it had saved no checkpoint and started again at its first step"


def make_good(trial: Any, reported: bool) -> str:
    """Give a trial that is about to start a checkpoint that exists; what was done, or "" where nothing had to be.

    Args:
        trial: Tune's; its actor is there and has not been asked for anything.
        reported: True where it has run before.
    """
    latest = _compat.latest_checkpoint(trial)
    if latest is None:
        return NONE_SAVED if reported else ""
    if is_there(latest.checkpoint):
        return ""
    lost = f"its checkpoint {latest.checkpoint.path} was deleted"
    for kept in _compat.kept_checkpoints(trial):
        if is_there(kept.checkpoint):
            _compat.go_on_from(trial, kept)
            return f"{lost}; it went on from the older {kept.checkpoint.path}"
    _compat.go_on_from(trial, None)
    return f"{lost}, and no older one is kept; it started again at its first step"


def is_there(checkpoint: Any) -> bool:
    """True where the checkpoint's folder exists and is not empty; also where storage does not answer just now,
    for then the trial's own attempt, and Tune's retries, say more."""
    files = checkpoint.filesystem
    try:
        if files.get_file_info(checkpoint.path).type != pyarrow.fs.FileType.Directory:
            return False
        return bool(files.get_file_info(pyarrow.fs.FileSelector(checkpoint.path)))
    except OSError:
        return True
