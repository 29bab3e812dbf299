"""Files that appear whole or not at all: a temporary file beside the old one, flushed to disk, renamed over it.

Every file that the package leaves behind is written here: laws, tables, pages, plans, checkpoints. A crash, a kill,
an interrupt or a full disk leaves what was there before. The folder is flushed too, for a rename lives in it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from metaopt_hpo.errors import MetaOptError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ABANDONED = 3600.0
"""Seconds without a write after which a temporary file is taken to be a killed process's, and removed."""


class WriteError(MetaOptError):
    """A file cannot be written; the one before it is unchanged."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path to write to; at the end of the block it replaces `path` in one step.

        with replacing("table.parquet") as temporary:
            frame.to_parquet(temporary)

    Missing folders are made; a symbolic link is written through; permissions of an old file are kept. A path that is
    no regular file (a pipe, /dev/stdout) is given as it is.

    Raises:
        WriteError: from the block or its end, for any OSError; `path` is as it was.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    handle: int | None = None
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            yield target
            return
        if target.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        # made here, so that a folder that takes no file is noticed before the caller's work
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        if fcntl is None:
            os.close(handle)  # Windows renames no open file
            handle = None
        else:
            _hold(handle)
        yield temporary
        if target.exists():
            shutil.copymode(target, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _flush_folder(target.parent)
    except OSError as error:
        raise WriteError(
            f"cannot write {os.fspath(path)}: {error.strerror or error}; what was there is unchanged: "
            "make room or choose another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace a file's content by `text`, in UTF-8 with line ends as they are; see `replacing`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace a file's content; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows has no handle on a folder to flush
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_abandoned(target: Path) -> None:
    """Remove what killed processes left of earlier writes of this file: a checkpoint may be many gigabytes."""
    for old in target.parent.glob(f".{_literal(target.name)}.*-*.tmp"):
        with contextlib.suppress(OSError):
            found = old.lstat()
            if stat.S_ISREG(found.st_mode) and time.time() - found.st_mtime > ABANDONED and not _is_held(old):
                old.unlink()


def _hold(handle: int) -> None:
    """Mark an open file as being written, for as long as this process has it open."""
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_held(path: Path) -> bool:
    """Whether its writer lives: by the clock alone, one that was set ahead would make every file old."""
    if fcntl is None:
        return False  # Windows removes no open file
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
