"""The step as one pass over memory in C (native.c), on the CPU, for every rule that has a description.

:class:`NativeKernel` advances buckets as any kernel does. :class:`WholeStep` runs a complete step, meta update
included, in one call: on a small model the time of a step is the time of its Python, so it keeps its arrays
from step to step and only looks at what may have changed.

The library is compiled for the processor it runs on, so results are bitwise reproducible on one machine, not
across machines; they do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim.kernels.bucket import Bucket
from metaopt_hpo.optim.kernels.build import BuildError, load
from metaopt_hpo.optim.kernels.describe import Program, describe, is_described, numbers
from metaopt_hpo.optim.kernels.eager import one_tensor
from metaopt_hpo.optim.kernels.emit import C, emit
from metaopt_hpo.optim.kernels.layout import computed_in, is_dense
from metaopt_hpo.optim.rules import SGD, Rule

_TYPES = {
    (torch.float32, torch.float32): 0,
    (torch.float64, torch.float64): 1,
    (torch.bfloat16, torch.float32): 2,
    (torch.float32, torch.bfloat16): 3,
    (torch.bfloat16, torch.bfloat16): 4,
}
"""Number of a pair of weight and trace dtypes in native.c."""
_DITHERED = {2: 5, 4: 6}
"""The same where weights are rounded at random in proportion."""
MOST_STATES = 8
_I64, _F64, _PTR = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split(", ")]


class Job(ctypes.Structure):
    """Mirror of ``job`` in native.c."""

    _fields_ = (
        *_fields(_I64, "tensors, chunks, blocks, groups, threads, wide, published"),
        *_fields(_F64, "gamma, meta_lr, low, high"),
        *_fields(_PTR, "p, g, h, state, step, n, type, block, ratio, decay, sign, numbers, meta_numbers"),
        *_fields(_PTR, "chunk_tensor, chunk_from, partial, scale, alpha, z, extra, beta, meta_step"),
        ("meta_state", _PTR * MOST_STATES),
        *_fields(_PTR, "skipped, live, live_from, live_block, live_ratio"),
        *_fields(_F64, "least, greatest"),
    )


def rule_text(base: Program, meta: Program) -> str:
    """rule.h: what two rules compute, as loops.h wants it."""
    lines = ["/* Written by native.py from the descriptions of two rules. */"]

    def define(name: str, text: str) -> None:
        lines.append(f"#define {name} {text}")

    for name, program, letter in (("BASE", base, "b"), ("META", meta, "m")):
        is_base = name == "BASE"
        pointer, state = ("q", "s") if is_base else ("r", "ms")
        states = range(program.states)
        inputs = {"t": "t", "g": "g" if is_base else "z", "w": "w" if is_base else "own", "number": "c[{0}]"}
        inputs |= {f"s{k}": f"{state}{k}" for k in states}
        text = emit(program, C, letter, inputs)
        home = "state[{0} * j->tensors + tensor]" if is_base else "meta_state[{0}]"
        pointers = [f"T *restrict {pointer}{k} = (T *)j->{home.format(k)} + from;" for k in states]
        define(f"{name}_POINTERS", " ".join(pointers))
        define(f"{name}_SCALARS", " ".join(text.scalars))
        define(f"{name}_LOAD", " ".join(f"const T {state}{k} = {pointer}{k}[i];" for k in states))
        define(f"{name}_OPS", " ".join(text.elements))
        define(f"{name}_STORE", " ".join(f"{pointer}{k}[i] = {text.new[k]};" for k in states))
        if is_base:
            define("BASE_U", text.direction)
        else:
            define("META_D", text.direction)
            define("META_FINITE", " ".join(f"&& FINITE({new})" for new in text.new))
            define("META_AND_FINITE", " ".join(f"& FINITE({new})" for new in text.new))
            define("META_KEEP", " ".join(f"r{k}[i] = ok ? {text.new[k]} : ms{k};" for k in states))
    return "\n".join(lines) + "\n"


_libraries: dict[tuple[Program, Program], ctypes.CDLL | BuildError] = {}
_lock = threading.Lock()


def library(base: Rule, meta: Rule | None = None) -> ctypes.CDLL:
    """The library for two described rules (any meta rule, where none is given), built where it must be and tried out
    once: a miscompiled one must not train anything.

    Raises:
        BuildError: it cannot be built here, or gives wrong numbers when tried.
    """
    key = describe(base), describe(SGD() if meta is None else meta)
    with _lock:
        found = _libraries.get(key)
        if found is None and meta is None:
            found = next((lib for (b, _), lib in _libraries.items() if b == key[0]), None)
        if found is None:
            try:
                found = load(rule_text(*key))
                _try_out(found, base)
            except BuildError as error:
                found = error
            _libraries[key] = found
    if isinstance(found, BuildError):
        raise found
    return found


class Arrays:
    """The C arrays for a fixed list of tensors: sizes, types, blocks and chunks; pointers are set before every call."""

    def __init__(
        self,
        chunk: int,
        params: Sequence[Tensor],
        traces: Sequence[Tensor],
        blocks: Sequence[int],
        count: int,
        states: int,
        dithered: bool = False,
    ) -> None:
        sizes = [p.numel() for p in params]
        table = [(i, start) for i, n in enumerate(sizes) for start in range(0, n, chunk)]
        self.job = job = Job()
        job.tensors, job.chunks, job.blocks = len(sizes), len(table), count
        self.kept: dict[str, Any] = {}
        for name in ("p", "g", "h", "step", "numbers"):
            self.array(name, _PTR, len(sizes))
        self.array("state", _PTR, len(sizes) * states)
        self.array("n", _I64, len(sizes))[:] = sizes
        types = [_TYPES[p.dtype, h.dtype] for p, h in zip(params, traces, strict=True)]
        self.array("type", _I64, len(sizes))[:] = [_DITHERED.get(t, t) if dithered else t for t in types]
        self.array("block", _I64, len(sizes))[:] = list(blocks)
        for name in ("ratio", "decay", "sign"):
            self.array(name, _F64, len(sizes))
        self.array("chunk_tensor", _I64, len(table))[:] = [i for i, _ in table]
        self.array("chunk_from", _I64, len(table))[:] = [start for _, start in table]
        self.array("partial", _F64, len(table))
        self._values: dict[Rule, Any] = {}

    def array(self, name: str, kind: Any, length: int) -> Any:
        """A new array under a field of the job."""
        array = self.kept[name] = (kind * length)()
        setattr(self.job, name, ctypes.addressof(array))
        return array

    def point(self, name: str, tensors: Sequence[Tensor], start: int = 0) -> None:
        found = [t.data_ptr() for t in tensors]
        if 0 in found:
            check_memory(tensors)
        self.kept[name][start : start + len(tensors)] = found

    def give_numbers(self, rules: Sequence[Rule]) -> None:
        """The rules' own numbers, one row a tensor."""
        if len(self._values) > 256:
            self._values.clear()
        for rule in rules:
            if rule not in self._values:
                values = list(numbers(rule).values())
                self._values[rule] = (_F64 * max(1, len(values)))(*values)
        self.kept["rows"] = rows = [self._values[rule] for rule in rules]
        self.kept["numbers"][:] = [ctypes.addressof(row) for row in rows]

    def give_sums(self, count: int) -> tuple[Tensor, Tensor]:
        """Room for α and z, one entry a block."""
        alpha = torch.zeros(count, dtype=torch.float64, device="cpu")
        z = torch.zeros(count, dtype=torch.float64, device="cpu")
        self.job.alpha, self.job.z = alpha.data_ptr(), z.data_ptr()
        return alpha, z


def check_memory(tensors: Sequence[Tensor]) -> None:
    """Raise ``ValueError`` where a tensor's memory has been given back (as FSDP and offloading do between steps)."""
    for x in tensors:
        if x.data_ptr() == 0 and x.numel() > 0:
            raise ValueError(
                f"the memory of a tensor of shape {tuple(x.shape)} (a parameter, its gradient or its state) has been "
                "freed: bring it back before the step"
            )


class NativeKernel:
    """The one-pass C loop, for dense float32, float64 and bfloat16 tensors on the CPU.

    One object belongs to one optimizer, for two threads may step two optimizers at once; libraries are the process's.
    """

    name = "native"

    def __init__(self) -> None:
        self._arrays: dict[Any, tuple[Arrays, Tensor, Tensor]] = {}

    def takes(self, p: Tensor, g: Tensor, state: Sequence[Tensor], rule: Rule) -> bool:
        """Whether this weight, its gradient and its state, the trace last, can be walked side by side as runs
        of memory."""
        kinds = (p.dtype, state[-1].dtype)
        plain = p.is_cpu and is_dense(p) and not (p.is_neg() or g.is_neg())
        if not (plain and kinds in _TYPES and is_described(rule)):
            return False
        stride, shape, wide = p.stride(), p.shape, computed_in(p)
        return (
            g.dtype == p.dtype
            and g.stride() == stride
            and g.shape == shape
            and len(state) <= MOST_STATES
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
        code = library(rule)
        key = (
            alpha.numel(),
            len(rule.states),
            bucket.dithered,
            tuple(bucket.blocks),
            tuple((p.numel(), p.dtype, h.dtype) for p, h in zip(bucket.params, bucket.traces, strict=True)),
        )
        found = self._arrays.get(key)
        if found is None:
            if len(self._arrays) > 64:
                self._arrays.clear()
            arrays = Arrays(
                int(code.metaopt_chunk()),
                bucket.params,
                bucket.traces,
                bucket.blocks,
                alpha.numel(),
                len(rule.states),
                bucket.dithered,
            )
            found = self._arrays[key] = arrays, *arrays.give_sums(alpha.numel())
        arrays, own_alpha, own_z = found
        job, n = arrays.job, len(bucket.params)
        for name, tensors in (("p", bucket.params), ("g", bucket.grads), ("h", bucket.traces)):
            arrays.point(name, tensors)
        arrays.point("step", bucket.steps)
        for k, column in enumerate(bucket.states):
            arrays.point("state", column, k * n)
        arrays.kept["ratio"][:] = [bucket.ratio] * n
        arrays.kept["decay"][:] = [bucket.decay] * n
        arrays.kept["sign"][:] = [-1.0 if bucket.maximize else 1.0] * n
        arrays.give_numbers([rule] * n)
        own_alpha.copy_(alpha)
        factor = None if scale is None else scale.to(torch.float64)
        job.scale = None if factor is None else factor.data_ptr()
        job.gamma, job.threads = gamma, torch.get_num_threads()
        code.metaopt_advance(ctypes.byref(job))
        torch.autograd.graph.increment_version(bucket.params)
        z.add_(own_z.to(z.dtype))


def _try_out(code: ctypes.CDLL, rule: Rule) -> None:
    """Hold the library against the pure function on a few numbers."""
    if int(code.metaopt_job_size()) != ctypes.sizeof(Job):
        raise BuildError("the library's structure differs from the one expected here")
    cpu = torch.device("cpu")
    n = 40_000
    ramp = torch.arange(n, dtype=torch.float64, device=cpu)
    w, g, h = torch.sin(ramp), torch.cos(3 * ramp), torch.sin(2 * ramp)
    state = tuple(torch.sin(ramp + i) ** 2 for i in range(len(rule.states)))
    alpha = torch.tensor([0.01], dtype=torch.float64, device=cpu)
    count = torch.tensor(2.0, dtype=torch.float32, device=cpu)
    delta, trace, new, hg = one_tensor(rule, w, g, h, state, 3.0, alpha, 0.9, 0.1)
    arrays = Arrays(int(code.metaopt_chunk()), [w], [h], [0], 1, len(state))
    own_alpha, z = arrays.give_sums(1)
    moved, moving = w.clone(), [*(x.clone() for x in state), h.clone()]
    for name, x in (("p", moved), ("g", g), ("h", moving[-1]), ("step", count)):
        arrays.point(name, [x])
    for k, x in enumerate(moving[:-1]):
        arrays.point("state", [x], k)
    for name, value in (("ratio", 1.0), ("decay", 0.1), ("sign", 1.0)):
        arrays.kept[name][:] = [value]
    arrays.give_numbers([rule])
    own_alpha.copy_(alpha)
    arrays.job.scale, arrays.job.gamma, arrays.job.threads = None, 0.9, 1
    code.metaopt_advance(ctypes.byref(arrays.job))
    pairs = [
        (moved, w + delta),
        (moving[-1], trace),
        (z, hg.sum().reshape(1)),
        *zip(moving[:-1], new, strict=True),
    ]
    if not all(torch.allclose(a, b, rtol=1e-9, atol=1e-9, equal_nan=True) for a, b in pairs):
        raise BuildError("the compiled library gives wrong numbers")
