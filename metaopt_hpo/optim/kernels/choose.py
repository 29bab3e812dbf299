"""Which kernel runs the step, and what happens where the best one cannot.

"auto" takes the one-pass C loop on a CPU for every rule that has a description, torch.compile on a GPU, and plain
torch operations otherwise. Where a kernel cannot be had, one warning says why and the plain operations run.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from metaopt_hpo.errors import warn
from metaopt_hpo.optim.kernels.bucket import Kernel
from metaopt_hpo.optim.kernels.build import BuildError
from metaopt_hpo.optim.kernels.compiled import CompiledKernel, KernelWarning
from metaopt_hpo.optim.kernels.describe import NotDescribed, describe, is_described
from metaopt_hpo.optim.kernels.eager import EagerKernel
from metaopt_hpo.optim.kernels.native import NativeKernel, library
from metaopt_hpo.optim.kernels.triton_step import TritonKernel, available, interpreted
from metaopt_hpo.optim.kernels.triton_try_out import try_out
from metaopt_hpo.optim.rules import SGD, Rule

CHOICES = ("auto", "native", "triton", "inductor", "eager")


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
    name = wanted if wanted != "auto" else (saved or _best(base, params))
    if name == "native":
        problem = _native_problem(base, params)
        if not problem:
            return NativeKernel()
        _warn("native", problem)
    if name == "triton":
        problem = _triton_problem(base, meta, params)
        if not problem:
            return TritonKernel()
        _warn("triton", problem)
        name = "inductor" if all(p.is_cuda for p in params) else name
    if name == "inductor":
        from torch.utils._triton import has_triton

        if all(p.is_cpu for p in params) or has_triton():
            return CompiledKernel()
        _warn("inductor", "no working Triton was found")
    return EagerKernel()


def _best(base: Sequence[Rule], params: Sequence[Tensor]) -> str:
    if all(p.is_cpu for p in params):
        return "native" if any(map(is_described, base)) else "eager"
    if not all(p.is_cuda for p in params):
        return "eager"
    return "inductor" if available() or not any(map(is_described, base)) else "triton"


def _native_problem(base: Sequence[Rule], params: Sequence[Tensor]) -> str:
    if not any(p.is_cpu for p in params):
        return "it runs on the CPU only"
    described = [rule for rule in dict.fromkeys(base) if is_described(rule)]
    if not described:
        try:
            describe(base[0])
        except NotDescribed as error:
            return f"it has no description of {type(base[0]).__name__}: {error}"
    try:
        for rule in described:
            library(rule)
    except BuildError as error:
        return str(error)
    return ""


def _triton_problem(base: Sequence[Rule], meta: Rule, params: Sequence[Tensor]) -> str:
    if available():
        return available()
    if not interpreted() and not all(p.is_cuda for p in params):
        return "it runs on a GPU only"
    described = [rule for rule in dict.fromkeys(base) if is_described(rule)]
    if not described:
        try:
            describe(base[0])
        except NotDescribed as error:
            return f"it has no description of {type(base[0]).__name__}: {error}"
    return try_out(described[0], meta if is_described(meta) else SGD(), params[0].device)


_warned: set[tuple[str, str]] = set()


def _warn(name: str, reason: str) -> None:
    if (name, reason) in _warned:
        return
    _warned.add((name, reason))
    warn(
        f"the {name} kernel of MetaOptimize cannot run: {reason}; plain torch operations take its place",
        KernelWarning,
    )
