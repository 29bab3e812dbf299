"""Which kernel runs the step, and what happens where the best one cannot.

"auto" takes the one-pass C loop on a CPU for the five rules of the paper, torch.compile on a GPU, and plain
torch operations otherwise. Where a kernel cannot be had, one warning says why and the plain operations run.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Sequence
from functools import cache

from torch import Tensor

from metaopt_hpo.optim.kernels.bucket import Kernel
from metaopt_hpo.optim.kernels.build import BuildError
from metaopt_hpo.optim.kernels.compiled import CompiledKernel, KernelWarning
from metaopt_hpo.optim.kernels.eager import EagerKernel
from metaopt_hpo.optim.kernels.native import NativeKernel, open_library, supports
from metaopt_hpo.optim.rules import Rule

CHOICES = ("auto", "native", "inductor", "eager")


def choose(wanted: str, saved: str, base: Sequence[Rule], meta: Rule, params: Sequence[Tensor]) -> Kernel:
    """The kernel for an optimizer's first step.

    Args:
        wanted: what the user asked for, one of :data:`CHOICES`.
        saved: the kernel in a loaded state, or ""; with "auto" it is used again, for only then is a resumed run
            bitwise the run that never stopped.
        base: the base rule of every parameter.
        meta: the meta rule.
        params: all parameters.
    """
    name = wanted if wanted != "auto" else (saved or _best(base, meta, params))
    if name == "native":
        problem = _native_problem(base, params)
        library = None if problem else _native()
        if isinstance(library, ctypes.CDLL):
            return NativeKernel(library)
        _warn("native", problem or str(library))
    if name == "inductor":
        from torch.utils._triton import has_triton

        if all(p.is_cpu for p in params) or has_triton():
            return CompiledKernel()
        _warn("inductor", "no working Triton was found")
    return EagerKernel()


def _best(base: Sequence[Rule], meta: Rule, params: Sequence[Tensor]) -> str:
    if all(p.is_cpu for p in params):
        return "native" if any(supports(rule) for rule in base) else "eager"
    return "inductor" if all(p.is_cuda for p in params) else "eager"


def _native_problem(base: Sequence[Rule], params: Sequence[Tensor]) -> str:
    if not any(supports(rule) for rule in base):
        return f"it knows no rule {type(base[0]).__name__}"
    if not any(p.is_cpu for p in params):
        return "it runs on the CPU only"
    return ""


@cache
def _native() -> ctypes.CDLL | BuildError:
    try:
        return open_library()
    except BuildError as error:
        return error


_warned: set[tuple[str, str]] = set()


def _warn(name: str, reason: str) -> None:
    if (name, reason) in _warned:
        return
    _warned.add((name, reason))
    warnings.warn(
        f"the {name} kernel of MetaOptimize cannot run: {reason}; plain torch operations take its place",
        KernelWarning,
        stacklevel=5,
    )
