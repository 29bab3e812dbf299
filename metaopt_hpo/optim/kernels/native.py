"""The step as one pass over memory in C (native.c), for the five base rules on the CPU.

:class:`NativeKernel` advances buckets as any kernel does. :class:`WholeStep` runs a complete step, meta update
included, in one call: on a small model the time of a step is the time of its Python, so it keeps its arrays
from step to step and only looks at what may have changed.

The library is compiled for the processor it runs on, so results are bitwise reproducible on one machine, not
across machines; they do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim.blocks import Blocks
from metaopt_hpo.optim.kernels.bucket import Bucket
from metaopt_hpo.optim.kernels.build import BuildError, load
from metaopt_hpo.optim.kernels.eager import one_tensor
from metaopt_hpo.optim.kernels.layout import computed_in, is_dense
from metaopt_hpo.optim.rules import SGD, SGDM, AdamW, Lion, RMSprop, Rule, resolved_eps

_RULES: dict[type[Rule], int] = {SGD: 0, SGDM: 1, RMSprop: 2, AdamW: 3, Lion: 4}
_TYPES = {
    (torch.float32, torch.float32): 0,
    (torch.float64, torch.float64): 1,
    (torch.bfloat16, torch.float32): 2,
    (torch.float32, torch.bfloat16): 3,
    (torch.bfloat16, torch.bfloat16): 4,
}
"""Number of a pair of weight and trace dtypes in native.c."""
_I64, _F64, _PTR = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split(", ")]


class _Job(ctypes.Structure):
    """Mirror of ``job`` in native.c."""

    _fields_ = (
        *_fields(_I64, "tensors, chunks, blocks, groups, threads, rule, meta_rule, wide"),
        *_fields(_F64, "gamma, b1, b2, eps, meta_lr, meta_b1, meta_b2, meta_eps, low, high"),
        *_fields(_PTR, "p, g, m, v, h, step, n, type, block, ratio, decay, sign"),
        *_fields(_PTR, "chunk_tensor, chunk_from, partial, scale, alpha, z"),
        *_fields(_PTR, "beta, meta_m, meta_v, meta_step, skipped, live, live_from, live_block, live_ratio"),
        *_fields(_F64, "least, greatest"),
    )


def supports(rule: Rule) -> bool:
    """Whether the C code knows this very rule (a subclass may compute something else)."""
    return type(rule) in _RULES


def constants(rule: Rule) -> tuple[int, float, float, float]:
    """(number, b1, b2, ε) of a rule in native.c."""
    number = _RULES[type(rule)]
    if isinstance(rule, SGDM):
        return number, rule.momentum, 0.0, 0.0
    if isinstance(rule, RMSprop):
        return number, 0.0, rule.beta, resolved_eps(rule.eps)
    if isinstance(rule, AdamW):
        return number, *rule.betas, resolved_eps(rule.eps)
    if isinstance(rule, Lion):
        return number, *rule.betas, 0.0
    return number, 0.0, 0.0, 0.0


class Arrays:
    """The C arrays for a fixed list of tensors: sizes, types, blocks and chunks; pointers are set before every call."""

    def __init__(
        self,
        library: ctypes.CDLL,
        params: Sequence[Tensor],
        traces: Sequence[Tensor],
        blocks: Sequence[int],
        count: int,
    ) -> None:
        sizes = [p.numel() for p in params]
        chunk = int(library.metaopt_chunk())
        table = [(i, start) for i, n in enumerate(sizes) for start in range(0, n, chunk)]
        self.job = job = _Job()
        job.tensors, job.chunks, job.blocks = len(sizes), len(table), count
        self.kept: list[Any] = []
        self.pointers = {
            name: self._array(name, _PTR, len(sizes)) for name in ("p", "g", "m", "v", "h", "step")
        }
        self._array("n", _I64, len(sizes))[:] = sizes
        self._array("type", _I64, len(sizes))[:] = [
            _TYPES[p.dtype, h.dtype] for p, h in zip(params, traces, strict=True)
        ]
        self._array("block", _I64, len(sizes))[:] = list(blocks)
        self.factors = {name: self._array(name, _F64, len(sizes)) for name in ("ratio", "decay", "sign")}
        self._array("chunk_tensor", _I64, len(table))[:] = [i for i, _ in table]
        self._array("chunk_from", _I64, len(table))[:] = [start for _, start in table]
        self._array("partial", _F64, len(table))
        self.alpha = torch.zeros(count, dtype=torch.float64, device="cpu")
        self.z = torch.zeros(count, dtype=torch.float64, device="cpu")
        job.alpha, job.z = self.alpha.data_ptr(), self.z.data_ptr()

    def _array(self, name: str, kind: Any, length: int) -> Any:
        array = (kind * length)()
        self.kept.append(array)
        setattr(self.job, name, ctypes.addressof(array))
        return array

    def point(self, name: str, tensors: Sequence[Tensor]) -> None:
        self.pointers[name][:] = [t.data_ptr() for t in tensors]


class NativeKernel:
    """The one-pass C loop, for dense float32, float64 and bfloat16 tensors on the CPU.

    One object belongs to one optimizer, for two threads may step two optimizers at once; the library is the process's.
    """

    name = "native"

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self._arrays: dict[Any, Arrays] = {}

    def takes_meta(self, rule: Rule) -> bool:
        """Whether the C code knows this meta rule."""
        return supports(rule)

    def whole_step(
        self,
        params: Sequence[Tensor],
        rules: Sequence[Rule],
        grads: Sequence[Tensor | None],
        state: Any,
        groups: Sequence[int],
        blocks: Blocks,
        shared: dict[str, Any],
        live: Sequence[Sequence[int]],
        meta: Rule,
        gamma: float,
        bounds: tuple[float, float] | None,
    ) -> WholeStep | None:
        if blocks.per_weight or any(rule is not rules[0] for rule in rules):
            return None
        return WholeStep(
            self, params, grads, state, groups, blocks.of, shared, live, rules[0], meta, gamma, bounds
        )

    def takes(self, p: Tensor, g: Tensor, state: Sequence[Tensor], rule: Rule) -> bool:
        """Whether this weight, its gradient and its state, the trace last, can be walked side by side as runs
        of memory."""
        kinds = (p.dtype, state[-1].dtype)
        if not (
            p.is_cpu and kinds in _TYPES and g.layout is torch.strided and supports(rule) and is_dense(p)
        ):
            return False
        stride, shape, wide = p.stride(), p.shape, computed_in(p)
        return (
            g.dtype == p.dtype
            and g.stride() == stride
            and g.shape == shape
            and all(x.is_cpu and x.shape == shape and x.stride() == stride for x in state)
            and all(x.dtype == wide for x in state[:-1])
        )

    def advance(
        self,
        bucket: Bucket,
        rule: Rule,
        alpha: Tensor,
        gamma: float,
        scale: Tensor | None,
        z: Tensor,
    ) -> None:
        key = (
            alpha.numel(),
            tuple(bucket.blocks),
            tuple((p.numel(), p.dtype, h.dtype) for p, h in zip(bucket.params, bucket.traces, strict=True)),
        )
        arrays = self._arrays.get(key)
        if arrays is None:
            if len(self._arrays) > 64:
                self._arrays.clear()
            arrays = self._arrays[key] = Arrays(
                self.library, bucket.params, bucket.traces, bucket.blocks, alpha.numel()
            )
        job, n = arrays.job, len(bucket.params)
        for name, tensors in _columns(rule, bucket).items():
            arrays.point(name, tensors)
        arrays.factors["ratio"][:] = [bucket.ratio] * n
        arrays.factors["decay"][:] = [bucket.decay] * n
        arrays.factors["sign"][:] = [-1.0 if bucket.maximize else 1.0] * n
        arrays.alpha.copy_(alpha)
        factor = None if scale is None else scale.to(torch.float64)
        job.scale = None if factor is None else factor.data_ptr()
        job.gamma, job.threads = gamma, torch.get_num_threads()
        job.rule, job.b1, job.b2, job.eps = constants(rule)
        self.library.metaopt_advance(ctypes.byref(job))
        torch.autograd.graph.increment_version(bucket.params)
        z.add_(arrays.z.to(z.dtype))


def _columns(rule: Rule, bucket: Bucket) -> dict[str, list[Tensor]]:
    columns = {"p": bucket.params, "g": bucket.grads, "h": bucket.traces, "step": bucket.steps}
    columns.update(zip(rule.states, bucket.states, strict=True))
    return columns


class WholeStep:
    """One optimizer's complete step in one C call, for as long as its parameters and state stay what they are.

    Args:
        kernel: the loaded library.
        params: all parameters; those without gradient are left out.
        grads: their gradients.
        state: the optimizer's state, one dict a parameter.
        groups: the index of each parameter's group.
        blocks: each parameter's block.
        shared: ``param_groups[0]``, where β and the meta state are.
        live: for each group the indices of its blocks, in the order of its ``step_size``.
        base, meta: the rules; both must be known to native.c.
        gamma: γ.
        bounds: of β, or None.
    """

    def __init__(
        self,
        kernel: NativeKernel,
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        state: Any,
        groups: Sequence[int],
        blocks: Sequence[int],
        shared: dict[str, Any],
        live: Sequence[Sequence[int]],
        base: Rule,
        meta: Rule,
        gamma: float,
        bounds: tuple[float, float] | None,
    ) -> None:
        self._kernel = kernel
        self._all = list(params)
        self._pattern = [g is not None for g in grads]
        active = [i for i, used in enumerate(self._pattern) if used]
        self._active = active
        self._base = base
        self._params = [params[i] for i in active]
        self._dicts = [state[p] for p in self._params]
        self._names = (*base.states, "h", "step")
        self._state = {name: [d[name] for d in self._dicts] for name in self._names}
        self._strides = [p.stride() for p in self._params]
        self._shapes = [p.shape for p in self._params]
        self._dtypes = [p.dtype for p in self._params]
        self._kinds = {name: [_kind(x) for x in column] for name, column in self._state.items()}
        self._groups = [groups[i] for i in active]
        self._arrays = arrays = Arrays(
            kernel.library,
            self._params,
            self._state["h"],
            [blocks[i] for i in active],
            shared["beta"].numel(),
        )
        job = arrays.job
        job.gamma = gamma
        job.rule, job.b1, job.b2, job.eps = constants(base)
        job.meta_rule, job.meta_b1, job.meta_b2, job.meta_eps = constants(meta)
        job.low, job.high = bounds if bounds is not None else (-float("inf"), float("inf"))
        job.wide = shared["beta"].dtype == torch.float64
        self._meta_names = ("beta", "meta_step", "skipped", *(f"meta_{name}" for name in meta.states))
        job.groups = len(live)
        self._live = arrays._array("live", _PTR, len(live))
        ends = [0]
        for own in live:
            ends.append(ends[-1] + len(own))
        arrays._array("live_from", _I64, len(ends))[:] = ends
        arrays._array("live_block", _I64, ends[-1])[: ends[-1]] = [b for own in live for b in own]
        self._live_ratio = arrays._array("live_ratio", _F64, len(live))
        self._multipliers: list[tuple[float, float, bool]] | None = None

    def matches(self, rules: Sequence[Rule], grads: Sequence[Tensor | None], state: Any) -> bool:
        """Whether the arrays still describe these gradients, the parameters and their state."""
        if any(rule is not self._base for rule in rules):
            return False
        if [g is not None for g in grads] != self._pattern:
            return False
        mine = self._params
        if not all(map(is_, map(state.get, mine), self._dicts)):
            return False
        for name in self._names:
            column = [d[name] for d in self._dicts]
            if not all(map(is_, column, self._state[name])) or list(map(_kind, column)) != self._kinds[name]:
                return False
        if [p.stride() for p in mine] != self._strides or [p.dtype for p in mine] != self._dtypes:
            return False
        used = [grads[i] for i in self._active]
        if [p.shape for p in mine] != self._shapes or [g.shape for g in used] != self._shapes:  # type: ignore[union-attr]
            return False
        return (
            all(p.is_cpu for p in mine)
            and all(g.layout is torch.strided for g in used)  # type: ignore[union-attr]
            and [g.stride() for g in used] == self._strides  # type: ignore[union-attr]
            and [g.dtype for g in used] == self._dtypes  # type: ignore[union-attr]
        )

    def run(
        self,
        grads: Sequence[Tensor | None],
        param_groups: Sequence[dict[str, Any]],
        lr: float,
        shared: dict[str, Any],
        scale: Tensor | None,
    ) -> tuple[float, float]:
        """Do the step; returns the least and the greatest β after it."""
        arrays, job = self._arrays, self._arrays.job
        arrays.point("p", self._params)
        arrays.point("g", [grads[i] for i in self._active])  # type: ignore[misc]
        for name in self._names:
            arrays.point(name, self._state[name])
        multipliers = [(group["lr"] / lr, group["weight_decay"], group["maximize"]) for group in param_groups]
        if multipliers != self._multipliers:
            self._multipliers = multipliers
            rows = [multipliers[i] for i in self._groups]
            arrays.factors["ratio"][:] = [row[0] for row in rows]
            arrays.factors["decay"][:] = [row[1] for row in rows]
            arrays.factors["sign"][:] = [-1.0 if row[2] else 1.0 for row in rows]
            self._live_ratio[:] = [row[0] for row in multipliers]
        for name in self._meta_names:
            setattr(job, name, shared[name].data_ptr())
        self._live[:] = [group["step_size"].data_ptr() for group in param_groups]
        factor = None if scale is None else scale.to(torch.float64)
        job.scale = None if factor is None else factor.data_ptr()
        job.meta_lr, job.threads = shared["meta_lr"], torch.get_num_threads()
        self._kernel.library.metaopt_step(ctypes.byref(job))
        torch.autograd.graph.increment_version(self._params)
        return job.least, job.greatest


def _kind(x: Tensor) -> tuple[bool, torch.dtype, torch.Size, tuple[int, ...]]:
    """What a tensor's memory looks like, but for its address; ``x.data`` can be exchanged behind an optimizer's
    back."""
    return x.is_cpu, x.dtype, x.shape, x.stride()


def open_library() -> ctypes.CDLL:
    """The library, built where it must be, and held against the pure function once, on a few numbers: a miscompiled
    one must not train anything.

    Raises:
        BuildError: it cannot be built here, or gives wrong numbers when tried.
    """
    library = load()
    if int(library.metaopt_job_size()) != ctypes.sizeof(_Job):
        raise BuildError("the library's structure differs from the one expected here")
    cpu = torch.device("cpu")
    ramp = torch.arange(40_000, dtype=torch.float64, device=cpu)
    w, g, h = torch.sin(ramp), torch.cos(3 * ramp), torch.sin(2 * ramp)
    state = [0.1 * torch.cos(ramp), torch.sin(ramp) ** 2]
    alpha = torch.tensor([0.01], dtype=torch.float64, device=cpu)
    z, count = torch.zeros_like(alpha), torch.tensor(2.0, dtype=torch.float32, device=cpu)
    rule = AdamW()
    delta, trace, (m, v), hg = one_tensor(rule, w, g, h, (state[0], state[1]), 3.0, alpha, 0.9, 0.1)
    bucket = Bucket(1.0, 0.1, False, False, [w.clone()], [g], ([state[0]], [state[1]]), [h], [count], [0])
    NativeKernel(library).advance(bucket, rule, alpha, 0.9, None, z)
    pairs = [
        (bucket.params[0], w + delta),
        (h, trace),
        (state[0], m),
        (state[1], v),
        (z, hg.sum().reshape(1)),
    ]
    if not all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in pairs):
        raise BuildError("the compiled library gives wrong numbers")
    return library
