"""Save and resume everything a run needs: whole, checked, the run's own, and without executing anything on load.

A file is `torch.save`'s, followed by its SHA-256. Inside it says which run it is of, so that no other goes on from it.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from metaopt_hpo.atomic import WriteError, replacing
from metaopt_hpo.errors import MetaOptError

FORMAT = "metaopt-hpo checkpoint"
VERSION = 2

MARK = b"\nmetaopt-hpo sha256 "
TRAILER = len(MARK) + 64 + 1
"""Bytes after torch's own: the mark, the digest in hexadecimal, a line end."""

IDENTITY = "identity"
"""Entry of a saved state that says whose it is: see `check_identity`."""


class CheckpointError(MetaOptError):
    """A checkpoint cannot be written, cannot be read as one of ours, or is another run's."""


class CheckpointWriteError(CheckpointError, WriteError):
    """A checkpoint cannot be written; the one before it is unchanged."""


def save(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write `state` to `path` so that a crash or a full disk leaves the old file whole.

    Raises:
        CheckpointWriteError: the folder is not writable, or full; an older checkpoint is untouched.
    """
    try:
        with replacing(path) as temporary:
            torch.save({"format": FORMAT, "version": VERSION, **state}, temporary)
            with temporary.open("rb") as written:
                digest = hashlib.file_digest(written, "sha256").hexdigest()
            with temporary.open("ab") as written:
                written.write(MARK + digest.encode() + b"\n")
    except (WriteError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise CheckpointWriteError(
            f"cannot write checkpoint {os.fspath(path)}: {_first_line(error)}"
        ) from error


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint written by `save` into host memory, with `weights_only=True`: no code in the file is run.

    `load_state_dict` of models and optimizers copies to the device; random states and host snapshots stay on the CPU.

    Raises:
        CheckpointError: no file, a damaged or foreign file, or one written by another version.
    """
    _check_sum(Path(path))
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {_first_line(error)}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of metaopt-hpo")
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {state.get('version')}, this installation reads {VERSION}; "
            "install the version that wrote it, or remove the file to start again"
        )
    return state


def resume(
    path: str | os.PathLike[str], identity: Mapping[str, Any], take: Callable[[dict[str, Any]], None]
) -> None:
    """Hand a saved state over to the run that it is of.

    Args:
        path: the checkpoint.
        identity: of the run, as `check_identity` compares it.
        take: what goes on from the state.

    Raises:
        CheckpointError: the file is damaged, another run's, or does not fit.
    """
    state = load(path)
    check_identity(path, state, identity)
    try:
        take(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the checkpoint {path} does not fit this run ({_first_line(error)}); remove it to start again"
        ) from error


def _check_sum(path: Path) -> None:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TRAILER))
            trailer = file.read()
            file.seek(0)
            digest, left = hashlib.sha256(), size - TRAILER
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {path}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    if not trailer.startswith(MARK):
        raise CheckpointError(
            f"{path} is cut short, or not a checkpoint of this version of metaopt-hpo; "
            "restore it, or remove it to start again"
        )
    if trailer != MARK + digest.hexdigest().encode() + b"\n":
        raise CheckpointError(
            f"{path} is damaged: its content does not match its checksum; restore it, or remove it to start again"
        )


def shapes(model: nn.Module) -> str:
    """The number of a model's weights, and a digest of its parameters' names, shapes and types."""
    named = list(model.named_parameters())
    text = "\n".join(f"{name} {tuple(p.shape)} {p.dtype}" for name, p in named)
    return f"{sum(p.numel() for _, p in named)} weights {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def plain(value: Any) -> Any:
    """An option of a strategy as plain values, equal across processes where the option is."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def check_identity(
    path: str | os.PathLike[str], state: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    """Raise unless a saved state is of the run that `expected` describes.

    Raises:
        CheckpointError: it is another run's; the message names what differs, and what each has.
    """
    saved = state.get(IDENTITY)
    if not isinstance(saved, dict):
        raise CheckpointError(f"{os.fspath(path)} does not say which run it is of; choose another file")
    wrong = _unlike(saved, expected)
    if not wrong:
        return
    what = ", ".join(_difference(k, saved.get(k), expected.get(k)) for k in wrong)
    raise CheckpointError(
        f"the checkpoint {os.fspath(path)} is another run's ({what}); give each run a file of its own, "
        "or remove this one to start again"
    )


def _unlike(saved: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ; NaN is like itself."""
    pairs = {k: (saved.get(k), expected.get(k)) for k in sorted(saved.keys() | expected.keys())}
    return [k for k, (one, other) in pairs.items() if one != other and repr(one) != repr(other)]


def _difference(name: str, saved: Any, expected: Any) -> str:
    if isinstance(saved, dict) and isinstance(expected, dict):
        return ", ".join(_difference(k, saved.get(k), expected.get(k)) for k in _unlike(saved, expected))
    return f"{name} {saved!r} instead of {expected!r}"


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


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
    """Restore `random_state()`, wherever its tensors are."""
    torch.set_rng_state(state["torch"].cpu())
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
