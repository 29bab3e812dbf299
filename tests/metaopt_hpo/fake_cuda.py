"""A GPU that is not there: tensors under torch's FakeTensorMode with device "cuda".

Nothing is computed, but every operation is checked for shape, dtype and device, and whatever would wait for the device
(``.item()``, ``float(tensor)``, ``.tolist()``, a boolean of a tensor) raises. Kernel launches are recorded.

    with fake_cuda() as launches:
        model = nn.Linear(4, 4, device="cuda")
        for p in model.parameters():
            p.grad = torch.ones_like(p)       # backward() needs a real device
        opt.step()

A torch built for the CPU has no device guard for CUDA; a C++ compiler makes one that does nothing. It stays in the
process: run such tests in one of their own (:func:`in_own_process`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from metaopt_hpo.optim import host
from metaopt_hpo.optim.kernels import choose, triton_step

Waits = DataDependentOutputException
"""What an operation raises that would wait for the device."""


OWN = os.environ.get("METAOPT_FAKE_CUDA") == "1"
inside = pytest.mark.skipif(not OWN, reason="runs in a process of its own")
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
static c10::impl::DeviceGuardImplRegistrar guard(
    c10::DeviceType::CUDA, new c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>());
"""


def in_own_process(file: str) -> None:
    """Run the tests of a file that are marked ``inside``."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("there is no C++ compiler for the device guard")
    env = {**os.environ, "METAOPT_FAKE_CUDA": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


_guarded = False


def _make_guard() -> None:
    global _guarded
    if _guarded or torch.backends.cuda.is_built():
        return
    root = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "guard.cpp", Path(folder) / "guard.so"
        source.write_text(GUARD)
        command = [os.environ.get("CXX", "g++"), "-std=c++20", "-shared", "-fPIC", f"-I{root / 'include'}", str(source),
                   "-o", str(library), f"-L{root / 'lib'}", "-lc10"]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        ctypes.CDLL(str(library))
    _guarded = True


class _Event:
    """torch.cuda.Event whose time comes when it is waited for."""

    def record(self, *_: Any) -> None:
        pass

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        pass


reads: list[int] = []
"""How many numbers each reading that waits has read, in order; all are 1."""


def _read(values: Any) -> list[float]:
    if values:
        reads.append(len(values))
    return [1.0] * len(values)


@contextlib.contextmanager
def fake_cuda() -> Iterator[list[str]]:
    """Make fake tensors on "cuda" possible; yields the list of names of the kernels that were launched."""
    _make_guard()
    launches: list[str] = []
    reads.clear()
    kernels = types.SimpleNamespace(advance="advance", settle="settle")
    empty = torch.empty

    def unpinned(*args: Any, pin_memory: bool = False, **named: Any) -> Any:
        return empty(*args, **named)

    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (triton_step, "launch", lambda kernel, *_, **__: launches.append(str(kernel))),
            (triton_step, "addresses", lambda tensors: list(range(len(tensors)))),
            (triton_step, "module", lambda *_: kernels),
            (triton_step, "_type", str),
            (host, "read", _read),
            (host.Later, "values", lambda later: [1.0] * later.device_values.numel()),
            (choose, "available", lambda: ""),
            (choose, "try_out", lambda *_: ""),
            (torch.Tensor, "pin_memory", lambda self, *_: self),
            (torch, "empty", unpinned),
            (torch.cuda, "Event", _Event),
            (torch.cuda, "is_current_stream_capturing", lambda: False),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield launches
