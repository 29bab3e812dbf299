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

PREFIX = "checkpoint_"
"""Begin of the name that Tune and Train give the folder of a checkpoint, before its number."""

NONE_SAVED = "it had saved no checkpoint and started again at its first step"


def make_good(trial: Any) -> str:
    """Give a trial that is about to start a checkpoint that exists; what was done, or "" where nothing had to be.

    Args:
        trial: Tune's, with a checkpoint to go on from; its actor is there and has not been asked for anything.
    """
    latest = _compat.latest_checkpoint(trial)
    if is_there(latest.checkpoint):
        return ""
    lost = f"its checkpoint {latest.checkpoint.path} was deleted"
    for kept in _compat.kept_checkpoints(trial):
        if is_there(kept.checkpoint):
            _compat.go_on_from(trial, kept)
            return f"{lost}; it went on from the older {kept.checkpoint.path}"
    _compat.go_on_from(trial, None)
    return f"{lost}, and no older one is kept; it started again at its first step"


def older_ones(checkpoint: Any) -> list[str]:
    """Folders of a trial's older checkpoints beside one of them, newest first: for a worker whose own is damaged."""
    folder, _, name = checkpoint.path.rstrip("/").rpartition("/")
    if not name.startswith(PREFIX):
        return []
    try:
        found = checkpoint.filesystem.get_file_info(pyarrow.fs.FileSelector(folder))
    except OSError:
        return []
    names = sorted((i.base_name for i in found if i.base_name.startswith(PREFIX)), reverse=True)
    return [f"{folder}/{other}" for other in names if other < name]


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
