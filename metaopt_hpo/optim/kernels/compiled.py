"""The pure function of the step through torch.compile: Inductor makes Triton of it on a GPU and C++ on a CPU.

For rules of one's own, and tensors that no other kernel takes. Every list of shapes is compiled once: decay, γ, the
multipliers and the numbers of a rule enter as tensors, and each graph has a code object of its own, so that Dynamo's
limit on recompilations, which counts over a whole process, is never met. A rule that cannot be compiled runs eagerly,
with one warning. On a CPU the sums of h·g are taken in a pass of their own: beside the updates, CPU Inductor of
torch 2.13 fails on them (a KeyError in its outer-loop fusion); and 0-dim tensors are given as one-element ones, for
it treats a 0-dim float64 tensor as a number and loses what is written to it.
"""

from __future__ import annotations

import threading
import types
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.errors import MetaOptWarning, warn
from metaopt_hpo.optim.kernels.bucket import Bucket
from metaopt_hpo.optim.kernels.describe import numbers, with_numbers
from metaopt_hpo.optim.kernels.eager import EagerKernel, gradient, one_tensor
from metaopt_hpo.optim.kernels.layout import computed_in
from metaopt_hpo.optim.rules import Rule

GRAPHS = 64
"""How many graphs a process keeps; the one unused for longest is dropped, and compiled anew if it is wanted again."""


class KernelWarning(MetaOptWarning):
    """A fast kernel cannot run here; the slower, plain torch operations do.

    Examples:
        >>> import warnings
        >>> from metaopt_hpo.optim import KernelWarning
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", KernelWarning)
        ...
    """


_graphs: OrderedDict[Any, Callable[..., list[Tensor]] | None] = OrderedDict()
_lock = threading.Lock()
_warned: set[str] = set()


class CompiledKernel:
    """One graph over the whole list of tensors."""

    name = "inductor"

    def __init__(self) -> None:
        self._eager = EagerKernel()

    def advance(
        self, bucket: Bucket, rule: Rule, alpha: Tensor, gamma: float, scale: Tensor | None, z: Tensor
    ) -> None:
        short = any(h.dtype != computed_in(p) for p, h in zip(bucket.params, bucket.traces, strict=True))
        if short or bucket.per_weight or bucket.dithered or not all(p.numel() for p in bucket.params):
            self._eager.advance(bucket, rule, alpha, gamma, scale, z)
            return
        kept = _snapshot(bucket) if _key(bucket, rule, scale) not in _graphs else None
        try:
            self._run(bucket, rule, alpha, gamma, scale, z)
        except Exception as error:
            if kept is None:
                raise
            # the first run of a graph compiles it; nothing is known of how far it came
            with _lock:
                _graphs[_key(bucket, rule, scale)] = None
            _restore(bucket, kept)
            _say(rule, error)
            self._eager.advance(bucket, rule, alpha, gamma, scale, z)

    def _run(
        self, bucket: Bucket, rule: Rule, alpha: Tensor, gamma: float, scale: Tensor | None, z: Tensor
    ) -> None:
        key = _key(bucket, rule, scale)
        with _lock:
            graph = _graphs.get(key, _graph)
            if graph is _graph:
                graph = _graphs[key] = torch.compile(_copy(_graph), fullgraph=True, dynamic=False)
            _graphs.move_to_end(key)
            if len(_graphs) > GRAPHS:
                _graphs.popitem(last=False)
        if graph is None:
            self._eager.advance(bucket, rule, alpha, gamma, scale, z)
            return
        device = bucket.params[0].device
        beside = device.type != "cpu"
        part = torch.zeros_like(z)
        if not beside:
            for h, raw, block in zip(bucket.traces, bucket.grads, bucket.blocks, strict=True):
                g = gradient(raw, h.dtype, scale, bucket.maximize)
                part[block].add_((h * g).sum())
        own = numbers(rule)
        values = [bucket.ratio, bucket.decay, gamma, *own.values()]
        constants = torch.tensor(values, dtype=torch.float64, device="cpu")
        if beside:
            constants = constants.pin_memory().to(device, non_blocking=True)
        sums = graph(
            params=[_at_least_1d(x) for x in bucket.params],
            grads=[_at_least_1d(x) for x in bucket.grads],
            states=tuple([_at_least_1d(x) for x in tensors] for tensors in bucket.states),
            traces=[_at_least_1d(x) for x in bucket.traces],
            steps=[t.to(torch.float64).reshape(1) + 1 for t in bucket.steps],
            alphas=[alpha[block].reshape(1) for block in bucket.blocks],
            constants=constants,
            scale=scale,
            rule=rule,
            own=tuple(own),
            maximize=bucket.maximize,
            beside=beside,
            names=tuple(bucket.names),
        )
        for block, value in zip(bucket.blocks, sums, strict=False):
            part[block].add_(value)
        torch._foreach_add_(bucket.steps, 1.0)
        z.add_(part)


def _key(bucket: Bucket, rule: Rule, scale: Tensor | None) -> Any:
    given = {name.partition(".")[0] for name in numbers(rule)}
    fixed = tuple((f.name, repr(getattr(rule, f.name))) for f in fields(rule) if f.name not in given)
    shapes = tuple((p.shape, p.stride(), p.dtype, str(p.device)) for p in bucket.params)
    strides = tuple((g.stride(), h.stride()) for g, h in zip(bucket.grads, bucket.traces, strict=True))
    states = tuple(tuple((x.shape, x.stride(), x.dtype) for x in column) for column in bucket.states)
    names = tuple(bucket.names) if "name" in rule.needs else ()
    return type(rule), fixed, shapes, strides, states, bucket.maximize, scale is None, names


def _at_least_1d(x: Tensor) -> Tensor:
    return x.view(1) if x.ndim == 0 else x


def _copy(function: Any) -> Any:
    """The same function with a code object of its own."""
    code = function.__code__.replace(co_name=function.__name__)
    return types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__)


def _snapshot(bucket: Bucket) -> list[Tensor]:
    columns = [bucket.params, *bucket.states, bucket.traces]
    return [x.clone() for column in columns for x in column]


def _restore(bucket: Bucket, kept: list[Tensor]) -> None:
    columns = [bucket.params, *bucket.states, bucket.traces]
    for x, old in zip((x for column in columns for x in column), kept, strict=True):
        x.copy_(old)


def _say(rule: Rule, error: Exception) -> None:
    name = type(rule).__name__
    if name in _warned:
        return
    _warned.add(name)
    reason = str(error).strip().split("\n")[0][:200]
    warn(
        f"the inductor kernel of MetaOptimize cannot compile {name}: {type(error).__name__}: {reason}; plain torch "
        "operations take its place",
        KernelWarning,
    )


def _graph(
    *,
    params: list[Tensor],
    grads: list[Tensor],
    states: tuple[list[Tensor], ...],
    traces: list[Tensor],
    steps: list[Tensor],
    alphas: list[Tensor],
    constants: Tensor,
    scale: Tensor | None,
    rule: Rule,
    own: tuple[str, ...],
    maximize: bool,
    beside: bool,
    names: tuple[str | None, ...],
) -> list[Tensor]:
    sums: list[Tensor] = []
    ratio, decay, gamma = constants[0:1], constants[1], constants[2]
    live = with_numbers(rule, own, [constants[3 + i] for i in range(len(own))])
    for i, (p, h) in enumerate(zip(params, traces, strict=True)):
        state = tuple(tensors[i] for tensors in states)
        g = gradient(grads[i], h.dtype, scale, maximize)
        a = (alphas[i] * ratio)[0]
        delta, new_h, new_state, hg = one_tensor(
            live, p.to(h.dtype), g, h, state, steps[i][0], a, gamma, decay, names[i] if names else None
        )
        if beside:
            sums.append(hg.sum())
        p.copy_(p.to(h.dtype) + delta)
        h.copy_(new_h)
        for old, new in zip(state, new_state, strict=True):
            old.copy_(new)
    return sums
