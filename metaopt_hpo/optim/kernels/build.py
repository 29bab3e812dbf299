"""Building the native kernel with the system's C compiler, once per machine, source and pair of rules, into the user's
cache.

The folder is ``$METAOPT_HPO_CACHE``, else ``$XDG_CACHE_HOME/metaopt_hpo``, else ``~/.cache/metaopt_hpo``. A
library is only loaded from a folder that belongs to the user and that nobody else may write to: where others may write
to the folder, a private one inside it is used; where that cannot be had, or nothing there can be run, a temporary one.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SOURCES = ("native.c", "loops.h")
FLAGS = (
    "-std=c11", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
)  # fmt: skip
"""Nothing of -ffast-math that changes a value: without errno and traps, square roots and divisions become
vector ones."""
VARIANTS = (
    ("-march=native", "-mprefer-vector-width=512", "-fopenmp"),
    ("-march=native", "-fopenmp"),
    ("-fopenmp",),
    ("-march=native", "-fopenmp-simd"),
    (),
)
"""Tried in this order: a compiler may know no such option, or have no OpenMP; without it the kernel runs on one
thread."""
STALE = 3600.0
"""Seconds after which what an interrupted build left behind is removed."""


class BuildError(Exception):
    """The native kernel could not be built or loaded; the message says why."""


def load(rules: str) -> ctypes.CDLL:
    """The native kernel's library for a pair of rules, from the cache or freshly built.

    Args:
        rules: the text of rule.h.

    Raises:
        BuildError: no C compiler, nowhere to put the library, or the compiler failed.
    """
    compiler = find_compiler()
    source = Path(__file__).parent
    digest = hashlib.sha256(rules.encode())
    for name in SOURCES:
        digest.update((source / name).read_bytes())
    described = (compiler, FLAGS, VARIANTS, _machine(), _version(tuple(compiler)), sys.platform)
    digest.update(repr(described).encode())
    name = f"step-{digest.hexdigest()[:24]}.so"
    problem = "no folder to build in"
    for folder in _folders():
        target = folder / name
        try:
            if not _is_library(target):
                _build(compiler, source, rules, target)
            return ctypes.CDLL(str(target))
        except OSError as error:
            problem = f"the library cannot be kept or loaded in {folder}: {error}"
            with contextlib.suppress(OSError):
                target.unlink(missing_ok=True)
        finally:
            if folder.name.startswith(TEMPORARY):  # what is loaded stays loaded
                shutil.rmtree(folder, ignore_errors=True)
    raise BuildError(problem)


TEMPORARY = "metaopt_hpo-"


def find_compiler() -> list[str]:
    """The C compiler with its arguments: ``$CC``, else cc, gcc or clang."""
    named = os.environ.get("CC", "").strip()
    if named:
        whole = shutil.which(named)  # a path with spaces in it
        try:
            parts = [named] if whole else shlex.split(named)
        except ValueError as error:
            raise BuildError(f"CC={named!r} cannot be read: {error}") from None
        path = whole or shutil.which(parts[0])
        if path is None:
            raise BuildError(f"no C compiler: {named} was not found")
        return [path, *parts[1:]]
    for name in ("cc", "gcc", "clang"):
        path = shutil.which(name)
        if path is not None:
            return [path]
    raise BuildError("no C compiler: cc, gcc or clang was not found")


def cache_folder() -> Path | None:
    """A folder of the user's own for built libraries, kept from run to run; None where there cannot be one."""
    named = os.environ.get("METAOPT_HPO_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(named) if named else (Path(base) if base else Path.home() / ".cache") / "metaopt_hpo"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not _is_private(folder):
            folder = folder / f"user-{os.getuid()}"
            folder.mkdir(exist_ok=True, mode=0o700)
        if _is_private(folder) and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # not writable, or the user has no home
        pass
    return None


def _folders() -> Iterator[Path]:
    """Where a library may be put, best first."""
    kept = cache_folder()
    if kept is not None:
        yield kept
    with contextlib.suppress(OSError):
        yield Path(tempfile.mkdtemp(prefix=TEMPORARY))


def _is_private(folder: Path) -> bool:
    if not hasattr(os, "getuid"):
        return True
    info = folder.lstat()
    return info.st_uid == os.getuid() and not info.st_mode & 0o022 and not folder.is_symlink()


def _is_library(path: Path) -> bool:
    """Whether there is a file that loads; an empty or damaged one is removed."""
    if not path.is_file():
        return False
    if path.stat().st_size > 0 and _loads(path):
        return True
    path.unlink(missing_ok=True)
    return False


def _build(compiler: list[str], source: Path, rules: str, target: Path) -> None:
    _sweep(target.parent)
    last, unloaded = "", False
    for variant in VARIANTS:
        with tempfile.TemporaryDirectory(prefix="build-", dir=target.parent) as folder:
            (Path(folder) / "rule.h").write_text(rules)
            built = Path(folder) / target.name
            command = [
                *compiler,
                *FLAGS,
                *variant,
                f"-I{folder}",
                str(source / SOURCES[0]),
                "-o",
                str(built),
                "-lm",
            ]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise BuildError(f"{compiler[0]} failed: {error}") from None
            if done.returncode == 0 and built.is_file() and built.stat().st_size > 0:
                if _loads(built):
                    os.replace(built, target)
                    return
                unloaded = True
            last = (done.stderr or "it wrote no library").strip().splitlines()[-1]
    if unloaded:
        raise OSError("the built library does not load")
    raise BuildError(f"{compiler[0]} failed: {last}")


def _sweep(folder: Path) -> None:
    """Remove what builds that were killed have left behind."""
    for pattern in ("build-*", "tmp*"):
        for left in folder.glob(pattern):
            with contextlib.suppress(OSError):
                if left.is_dir() and time.time() - left.stat().st_mtime > STALE:
                    shutil.rmtree(left, ignore_errors=True)


def _loads(path: Path) -> bool:
    try:
        ctypes.CDLL(str(path))
    except OSError:
        return False
    return True


@cache
def _version(compiler: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(
            [*compiler, "--version"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler[0]} does not run: {error}") from None
    return done.stdout


@cache
def _machine() -> str:
    """What -march=native depends on: the processor's model and its instruction sets."""
    lines = [platform.machine(), platform.processor()]
    info = Path("/proc/cpuinfo")
    if info.exists():
        wanted = ("model name", "flags", "Features", "CPU part")
        lines += sorted({line for line in info.read_text().splitlines() if line.startswith(wanted)})
    return "\n".join(lines)
