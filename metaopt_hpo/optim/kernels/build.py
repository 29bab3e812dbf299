"""Building the native kernel with the system's C compiler, once per machine and source, into the user's cache.

The folder is ``$METAOPT_HPO_CACHE``, else ``$XDG_CACHE_HOME/metaopt_hpo``, else ``~/.cache/metaopt_hpo``. A
library is only loaded from a folder that belongs to the user and that nobody else may write to.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = ("native.c", "loops.h")
FLAGS = ("-std=c11", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
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


class BuildError(Exception):
    """The native kernel could not be built or loaded; the message says why."""


def load() -> ctypes.CDLL:
    """The native kernel's library, from the cache or freshly built.

    Raises:
        BuildError: no C compiler, nowhere to put the library, or the compiler failed.
    """
    compiler = find_compiler()
    folder = cache_folder()
    source = Path(__file__).parent
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((source / name).read_bytes())
    digest.update(repr((FLAGS, VARIANTS, _machine(), _version(compiler), sys.platform)).encode())
    target = folder / f"step-{digest.hexdigest()[:24]}.so"
    if not target.exists():
        _build(compiler, source / "native.c", target)
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        target.unlink(missing_ok=True)
        raise BuildError(f"the library does not load: {error}") from None


def find_compiler() -> str:
    """The C compiler: ``$CC``, else cc, gcc or clang."""
    named = os.environ.get("CC")
    for name in [named] if named else ["cc", "gcc", "clang"]:
        path = shutil.which(name)
        if path is not None:
            return path
    raise BuildError(f"no C compiler: {named or 'cc, gcc or clang'} was not found")


def cache_folder() -> Path:
    """A folder of the user's own for built libraries; a new temporary one where the cache cannot be used."""
    named = os.environ.get("METAOPT_HPO_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(named) if named else (Path(base) if base else Path.home() / ".cache") / "metaopt_hpo"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if _is_private(folder) and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # not writable, or the user has no home
        pass
    return Path(tempfile.mkdtemp(prefix="metaopt_hpo-"))


def _is_private(folder: Path) -> bool:
    if not hasattr(os, "getuid"):
        return True
    info = folder.stat()
    return info.st_uid == os.getuid() and not info.st_mode & 0o022


def _build(compiler: str, source: Path, target: Path) -> None:
    last = ""
    for variant in VARIANTS:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder) / target.name
            command = [compiler, *FLAGS, *variant, str(source), "-o", str(built), "-lm"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise BuildError(f"{compiler} failed: {error}") from None
            if done.returncode == 0 and _loads(built):
                os.replace(built, target)
                return
            last = (done.stderr or "the library does not load").strip().splitlines()[-1]
    raise BuildError(f"{compiler} failed: {last}")


def _loads(path: Path) -> bool:
    try:
        ctypes.CDLL(str(path))
    except OSError:
        return False
    return True


def _version(compiler: str) -> str:
    try:
        done = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler} does not run: {error}") from None
    return done.stdout


def _machine() -> str:
    """What -march=native depends on: the processor's model and its instruction sets."""
    lines = [platform.machine(), platform.processor()]
    info = Path("/proc/cpuinfo")
    if info.exists():
        wanted = ("model name", "flags", "Features", "CPU part")
        lines += sorted({line for line in info.read_text().splitlines() if line.startswith(wanted)})
    return "\n".join(lines)
