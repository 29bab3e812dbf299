"""One optimizer's complete step on a GPU: two Triton launches over pointer and chunk tables, whatever the number of
tensors (one more for every further combination of dtypes).

Nothing is read from the device. Pointers that have changed (gradients do, under ``set_to_none``) go up through pinned
memory, all of them in one copy. The step can be captured into a CUDA graph, once it has run outside one: the graph has
a pointer table of its own, and shares the tables of numbers, see :meth:`TritonStep.refresh`.

In Triton's interpreter (``TRITON_INTERPRET=1``) the same code runs on CPU tensors; the tests hold it against the plain
operations that way.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim.kernels.chunks import lay_out
from metaopt_hpo.optim.kernels.describe import NotDescribed, describe, is_described, numbers
from metaopt_hpo.optim.kernels.device_tables import DeviceTables, addresses
from metaopt_hpo.optim.kernels.inputs import StepInputs
from metaopt_hpo.optim.kernels.layout import computed_in, is_dense
from metaopt_hpo.optim.kernels.triton_source import FIXED, module
from metaopt_hpo.optim.meta import advance_beta
from metaopt_hpo.optim.rules import SGD, Rule

BLOCK = 1024
WEIGHTS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def interpreted() -> bool:
    """Whether Triton runs in its interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def available() -> str:
    """ "" where Triton can be used, else why not."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return "triton is not installed"
    return ""


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Start a kernel; everything that reaches the GPU goes through here."""
    kernel[grid](*args, **constants)


class TritonKernel:
    """What ``choose`` returns for "triton"; the work is in :class:`TritonStep`."""

    name = "triton"

    def advance(self, *_: Any) -> None:
        raise NotImplementedError("parameters that TritonStep does not take are advanced by plain operations")


def triton_step(given: StepInputs) -> TritonStep | None:
    """The whole step of these parameters, or None where it cannot be done so."""
    params, rules, grads, state, blocks, shared = (
        given.params, given.rules, given.grads, given.state, given.blocks, given.shared,
    )  # fmt: skip
    used = given.used
    beta: Tensor = shared["beta"]
    if not used or blocks.per_weight:
        return None
    try:
        program = describe(rules[used[0]])
        if any(describe(rules[i]) != program for i in used):
            return None
    except NotDescribed:
        return None
    for i in used:
        p, g, own = params[i], grads[i], state[params[i]]
        assert g is not None
        moving = [own[name] for name in (*rules[i].states, "h")]
        if not (p.device == beta.device and p.dtype in WEIGHTS and is_dense(p) and g.dtype == p.dtype):
            return None
        if own["step"].device != p.device or g.stride() != p.stride():
            return None
        if any(x.shape != p.shape or x.stride() != p.stride() or x.device != p.device for x in moving):
            return None
        if any(x.dtype != computed_in(p) for x in moving[:-1]):
            return None
    return TritonStep(given)


class TritonStep:
    """See :func:`triton_step`, which makes it."""

    def __init__(self, given: StepInputs) -> None:
        params, rules, grads, blocks, meta = given.params, given.rules, given.grads, given.blocks, given.meta
        self._pattern = [g is not None for g in grads]
        used = given.used
        self._active = sorted(used, key=lambda i: blocks.of[i])
        self._params = [params[i] for i in self._active]
        self._dicts = [given.state[p] for p in self._params]
        self._states = rules[used[0]].states
        self._names = (*self._states, "h", "step")
        self._state = {name: [d[name] for d in self._dicts] for name in self._names}
        self._looks = _looks(self._params)
        self._kinds = {name: _looks(column) for name, column in self._state.items()}
        self._groups = [given.groups[i] for i in self._active]
        self._meta, self._gamma, self._bounds, self._dithered = (
            meta,
            given.gamma,
            given.bounds,
            given.dithered,
        )
        self._program = describe(rules[used[0]])
        self._settles = is_described(meta)
        self._module = module(self._program, describe(meta if self._settles else SGD()))
        device = given.shared["beta"].device
        self._row = FIXED + len(self._states)
        self._live = given.live
        self._tables = DeviceTables(device)
        own_blocks = [blocks.of[i] for i in self._active]
        self._lay_out(own_blocks, blocks.count)
        self._partial = torch.zeros(self._chunk_count, dtype=torch.float64, device=device)
        self._ticks = torch.zeros(2, dtype=torch.int64, device=device)

    def _lay_out(self, own_blocks: list[int], count: int) -> None:
        found = lay_out(self._params, self._state["h"], own_blocks, count, self._live)
        self._chunk, self._chunk_count, self._count = found.length, found.chunks, count
        self._order, self._live_slots = list(found.order), found.live_slots
        self._lengths = [len(numbered) for numbered in found.order.values()]
        for name, values in found.tables.items():
            self._tables.put(name, values, torch.int64)
        for k, numbered in enumerate(found.order.values()):
            self._tables.put(f"order{k}", numbered, torch.int64)

    def matches(self, rules: Sequence[Rule], grads: Sequence[Tensor | None], state: Any) -> bool:
        """Whether the tables still describe these gradients, the parameters and their state."""
        if [g is not None for g in grads] != self._pattern:
            return False
        if not all(map(is_, map(state.get, self._params), self._dicts)):
            return False
        for name in self._names:
            column: list[Any] = [d.get(name) for d in self._dicts]
            if not all(map(is_, column, self._state[name])) or _looks(column) != self._kinds[name]:
                return False
        used: list[Any] = [grads[i] for i in self._active]
        if _looks(self._params) != self._looks or _looks(used) != self._looks:
            return False
        own = [rules[i] for i in self._active]
        if all(rule is own[0] for rule in own):
            if describe(own[0]) != self._program:
                return False
        elif any(describe(rule) != self._program for rule in own):
            return False
        self._rules = own
        return True

    def refresh(
        self,
        param_groups: Sequence[dict[str, Any]],
        lr: float,
        shared: dict[str, Any],
        rules: Sequence[Rule] | None = None,
    ) -> None:
        """Write multipliers, decay, γ, η and the rules' numbers to the tables where they have changed; between replays
        of a captured step this is what a schedule needs."""
        if rules is not None:
            self._rules = [rules[i] for i in self._active]
        rows = [
            (group["lr"] / lr, group["weight_decay"], -1.0 if group["maximize"] else 1.0)
            for group in param_groups
        ]
        self._tables.put("factors", [x for i in self._groups for x in rows[i]], torch.float64)
        values = [list(numbers(rule).values()) for rule in self._rules]
        self._tables.put("numbers", [x for row in values for x in row], torch.float64)
        self._number_count = len(values[0])
        if self._settles:
            self._tables.put("meta_numbers", list(numbers(self._meta).values()), torch.float64)
        low, high = self._bounds if self._bounds is not None else (-float("inf"), float("inf"))
        self._tables.put("common", [self._gamma, shared["meta_lr"], low, high], torch.float64)
        self._tables.put("live_ratio", [rows[group][0] for group, _ in self._live_slots], torch.float64)

    def run(
        self,
        grads: Sequence[Tensor | None],
        param_groups: Sequence[dict[str, Any]],
        lr: float,
        shared: dict[str, Any],
        scale: Tensor | None,
        extra: Tensor | None = None,
    ) -> None:
        """Do the step; ``extra`` is what parameters that others advance add to z."""
        self.refresh(param_groups, lr, shared)
        beta: Tensor = shared["beta"]
        columns = [self._params, [grads[i] for i in self._active], self._state["h"], self._state["step"]]
        columns += [self._state[name] for name in self._states]
        found = [addresses(column) for column in columns]  # type: ignore[arg-type]
        rows = self._tables.put_addresses("rows", [x for row in zip(*found, strict=True) for x in row])
        starts = addresses([group["step_size"] for group in param_groups])
        live = self._tables.put_addresses(
            "live", [starts[group] + place * beta.element_size() for group, place in self._live_slots]
        )
        tables = self._tables
        for k, (kind, length) in enumerate(zip(self._order, self._lengths, strict=True)):
            w, wide, h = kind
            launch(
                self._module.advance,
                (length,),
                tables[f"order{k}"],
                tables["chunks"],
                rows,
                tables["sizes"],
                tables["factors"],
                tables["numbers"],
                tables["common"],
                beta,
                self._partial,
                beta if scale is None else scale,
                self._ticks,
                self._number_count,
                1 if k == 0 else 0,
                HAS_SCALE=scale is not None,
                W=_type(w),
                T=_type(wide),
                H=_type(h),
                DITHER_H=h == torch.bfloat16,
                ROUND_W=0 if w != torch.bfloat16 else 2 if self._dithered else 1,
                ROW=self._row,
                CHUNK=self._chunk,
                BLOCK=BLOCK,
            )
        if not self._settles:
            self._update_beta(shared, extra)
            torch.autograd.graph.increment_version(self._params)
            return
        launch(
            self._module.settle,
            (self._count,),
            self._partial,
            beta if extra is None else extra,
            tables["ranges"],
            rows,
            tables["common"],
            tables["meta_numbers"],
            beta,
            shared["meta_step"],
            *(shared[f"meta_{name}"] for name in self._meta.states),
            shared["skipped"],
            self._ticks,
            live,
            tables["live_ratio"],
            HAS_EXTRA=extra is not None,
            T=_type(beta.dtype),
            ROW=self._row,
            BLOCK=BLOCK,
        )
        torch.autograd.graph.increment_version(self._params)

    def _update_beta(self, shared: dict[str, Any], extra: Tensor | None) -> None:
        """What the second kernel does, by plain operations: for a meta rule without a description, such as one that
        looks at several blocks together. Live step sizes are left to the caller."""
        beta: Tensor = shared["beta"]
        z = torch.segment_reduce(self._partial, "sum", lengths=self._tables["lengths"], unsafe=True).to(
            beta.dtype
        )
        if extra is not None:
            z += extra
        state = [shared[f"meta_{name}"] for name in self._meta.states]
        counts, skipped = shared["meta_step"], shared["skipped"]
        advance_beta(self._meta, beta, z, state, counts, skipped, shared["meta_lr"], self._bounds)
        torch._foreach_add_(self._state["step"], 1.0)

    @property
    def publishes(self) -> bool:
        """Whether ``run`` writes the live step sizes."""
        return self._settles


def _looks(tensors: Sequence[Tensor]) -> list[Any]:
    """What tensors' memory looks like, but for its address."""
    return [(x.device, x.dtype, x.shape, x.stride()) for x in tensors]


def _type(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return {
        torch.float32: tl.float32,
        torch.float64: tl.float64,
        torch.bfloat16: tl.bfloat16,
        torch.float16: tl.float16,
    }[dtype]
