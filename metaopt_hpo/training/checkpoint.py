"""Save and resume everything a run needs: atomically, and without executing anything on load."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metaopt_hpo.errors import MetaOptError

FORMAT = "metaopt-hpo checkpoint"
VERSION = 1


class CheckpointError(MetaOptError):
    """A checkpoint cannot be written, or cannot be read as one of ours."""


def save(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write `state` to `path` so that a crash or a full disk leaves the old file whole.

    The bytes go to a temporary file beside it, are flushed to disk, and replace the old file in one step.

    Raises:
        CheckpointError: the folder is missing, not writable, or full; an older checkpoint is untouched.
    """
    target = Path(path)
    temporary: str | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=target.name, suffix=".tmp", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except (OSError, RuntimeError) as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise CheckpointError(
            f"cannot write checkpoint {target}: {error}; free space or choose another folder"
        ) from error


def load(path: str | os.PathLike[str], map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint written by `save`, with `weights_only=True`: no code in the file is run.

    Raises:
        CheckpointError: no file, a damaged or foreign file, or one written by a newer version.
    """
    try:
        state = torch.load(path, weights_only=True, map_location=map_location)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {path}") from error
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of metaopt-hpo")
    if state["version"] > VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {state['version']}, this installation reads up to {VERSION}; "
            "upgrade metaopt-hpo"
        )
    return state


def random_state() -> dict[str, Any]:
    """State of every global random generator a run may draw from, in types `weights_only` accepts."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002  global state is what users' code draws from
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(internal), gauss],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore `random_state()`."""
    torch.set_rng_state(state["torch"].cpu())
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
