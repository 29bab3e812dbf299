"""One optimizer's complete step in one C call, for as long as its parameters and state stay what they are."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim.blocks import Blocks
from metaopt_hpo.optim.kernels.build import BuildError
from metaopt_hpo.optim.kernels.describe import describe, is_described, numbers
from metaopt_hpo.optim.kernels.inputs import StepInputs
from metaopt_hpo.optim.kernels.layout import computed_in
from metaopt_hpo.optim.kernels.native import _F64, _I64, _PTR, MOST_STATES, Arrays, check_memory, library
from metaopt_hpo.optim.meta import advance_beta
from metaopt_hpo.optim.rules import Rule


def whole_step(given: StepInputs) -> WholeStep | None:
    """The whole step of these parameters, or None where it cannot be one call."""
    params, rules, state, blocks, shared = given.params, given.rules, given.state, given.blocks, given.shared
    meta, used = given.meta, given.used
    if not (shared["beta"].is_cpu and is_described(meta) and len(meta.states) <= MOST_STATES):
        return None
    if not used or not all(is_described(rules[i]) for i in used):
        return None
    program = describe(rules[used[0]])
    if any(describe(rules[i]) != program for i in used):
        return None
    if blocks.per_weight:
        kinds = {computed_in(params[i]) for i in used}
        # β lies in the order of the elements, so memory must too
        ordered = all(params[i].is_contiguous() for i in used)
        short = any(state[params[i]]["h"].dtype == torch.bfloat16 for i in used)
        if short or not ordered or kinds != {shared["beta"].dtype}:
            return None
    try:
        code = library(rules[used[0]], meta)
    except BuildError:
        return None
    return WholeStep(code, given)


class WholeStep:
    """See :func:`whole_step`, which makes it."""

    def __init__(self, code: ctypes.CDLL, given: StepInputs) -> None:
        params, rules, blocks, shared = given.params, given.rules, given.blocks, given.shared
        groups, live, meta, bounds = given.groups, given.live, given.meta, given.bounds
        self._code, self._meta, self._bounds = code, meta, bounds
        self._pattern = [g is not None for g in given.grads]
        self._active = active = given.used
        self._params = [params[i] for i in active]
        self._dicts = [given.state[p] for p in self._params]
        self._names = (*rules[active[0]].states, "h", "step")
        self._state = {name: [d[name] for d in self._dicts] for name in self._names}
        self._rules: list[Rule] = []
        self._looks = _looks(self._params)
        self._kinds = {name: _looks(column) for name, column in self._state.items()}
        self._groups = [groups[i] for i in active]
        self._per_weight = blocks.per_weight
        own_blocks = [blocks.of[i] for i in active]
        chunk, count = int(code.metaopt_chunk()), shared["beta"].numel()
        states = len(rules[active[0]].states)
        self._arrays = arrays = Arrays(
            chunk, self._params, self._state["h"], own_blocks, count, states, given.dithered
        )
        job = arrays.job
        job.gamma = given.gamma
        values = list(numbers(meta).values())
        arrays.array("meta_numbers", _F64, max(1, len(values)))[: len(values)] = values
        job.low, job.high = bounds if bounds is not None else (-float("inf"), float("inf"))
        job.wide = shared["beta"].dtype == torch.float64
        self._multipliers: list[tuple[float, float, bool]] | None = None
        if self._per_weight:
            self._lay_out_weights(params, groups, blocks, active)
            return
        self._sums = arrays.give_sums(count)
        job.groups = len(live)
        arrays.array("live", _PTR, len(live))
        ends = [0]
        for own in live:
            ends.append(ends[-1] + len(own))
        arrays.array("live_from", _I64, len(ends))[:] = ends
        arrays.array("live_block", _I64, ends[-1])[: ends[-1]] = [b for own in live for b in own]
        self._live_ratio = arrays.array("live_ratio", _F64, len(live))

    def _lay_out_weights(
        self, params: Sequence[Tensor], groups: Sequence[int], blocks: Blocks, active: list[int]
    ) -> None:
        """Where in its group's ``step_size`` each parameter's begin, and which stretches of β have no gradient."""
        self._arrays.array("live", _PTR, len(active))
        offsets, ends = [], dict.fromkeys(groups, 0)
        for p, group in zip(params, groups, strict=True):
            offsets.append(ends[group])
            ends[group] += p.numel()
        self._offsets = [offsets[i] for i in active]
        self._published: Any = None
        here = {id(params[i]) for i in active}
        self._idle = [
            slice(member.block, member.block + member.numel)
            for p, member in blocks.members.items()
            if id(p) not in here
        ]

    def matches(self, rules: Sequence[Rule], grads: Sequence[Tensor | None], state: Any) -> bool:
        """Whether the arrays still describe these gradients, the parameters and their state."""
        if [g is not None for g in grads] != self._pattern:
            return False
        mine = self._params
        if not all(map(is_, map(state.get, mine), self._dicts)):
            return False
        for name in self._names:
            column: list[Any] = [d.get(name) for d in self._dicts]
            if not all(map(is_, column, self._state[name])) or _looks(column) != self._kinds[name]:
                return False
        used: list[Any] = [grads[i] for i in self._active]
        if _looks(mine) != self._looks or _looks(used) != self._looks:
            return False
        own = [rules[i] for i in self._active]
        if len(own) != len(self._rules) or not all(map(is_, own, self._rules)):
            program = describe(own[0])
            if tuple(own[0].states) != self._names[:-2] or any(describe(rule) != program for rule in own):
                return False
            if self._rules and describe(self._rules[0]) != program:
                return False
            self._arrays.give_numbers(own)
            self._rules = own
        return True

    def run(
        self,
        grads: Sequence[Tensor | None],
        param_groups: Sequence[dict[str, Any]],
        lr: float,
        shared: dict[str, Any],
        scale: Tensor | None,
        extra: Tensor | None = None,
    ) -> tuple[float, float]:
        """Do the step; returns the least and the greatest β after it. ``extra`` is what parameters that others advance
        add to z (not with weight blocks)."""
        arrays, job = self._arrays, self._arrays.job
        arrays.point("p", self._params)
        arrays.point("g", [grads[i] for i in self._active])  # type: ignore[misc]
        for k, name in enumerate(self._names[:-2]):
            arrays.point("state", self._state[name], k * len(self._params))
        arrays.point("h", self._state["h"])
        arrays.point("step", self._state["step"])
        multipliers = [(group["lr"] / lr, group["weight_decay"], group["maximize"]) for group in param_groups]
        if multipliers != self._multipliers:
            self._multipliers = multipliers
            rows = [multipliers[i] for i in self._groups]
            arrays.kept["ratio"][:] = [row[0] for row in rows]
            arrays.kept["decay"][:] = [row[1] for row in rows]
            arrays.kept["sign"][:] = [-1.0 if row[2] else 1.0 for row in rows]
            if not self._per_weight:
                self._live_ratio[:] = [row[0] for row in multipliers]
        beta: Tensor = shared["beta"]
        state = [shared[f"meta_{name}"] for name in self._meta.states]
        check_memory([beta, shared["meta_step"], shared["skipped"], *state])
        job.beta, job.meta_step, job.skipped = (
            shared[x].data_ptr() for x in ("beta", "meta_step", "skipped")
        )
        job.meta_state[: len(state)] = [x.data_ptr() for x in state]
        factor = None if scale is None else scale.to(torch.float64)
        job.scale = None if factor is None else factor.data_ptr()
        more = None if extra is None else extra.to(torch.float64)
        job.extra = None if more is None else more.data_ptr()
        job.meta_lr, job.threads = shared["meta_lr"], torch.get_num_threads()
        if self._per_weight:
            self._run_weights(param_groups, beta, state, shared)
            return self._range(beta)
        arrays.kept["live"][:] = [group["step_size"].data_ptr() for group in param_groups]
        self._code.metaopt_step(ctypes.byref(job))
        torch.autograd.graph.increment_version(self._params)
        return job.least, job.greatest

    def _range(self, beta: Tensor) -> tuple[float, float]:
        if not self._idle:
            return self._arrays.job.least, self._arrays.job.greatest
        low, high = torch.aminmax(beta)
        return float(low), float(high)

    def _run_weights(
        self,
        param_groups: Sequence[dict[str, Any]],
        beta: Tensor,
        state: list[Tensor],
        shared: dict[str, Any],
    ) -> None:
        lives = [group["step_size"] for group in param_groups]
        self._arrays.kept["live"][:] = [
            lives[group].data_ptr() + offset * beta.element_size()
            for group, offset in zip(self._groups, self._offsets, strict=True)
        ]
        for own in self._idle:  # as everywhere, a block without a gradient takes the meta step of z = 0
            moving = [x[own] for x in state]
            count, skipped = shared["meta_step"].clone(), shared["skipped"].clone()
            nothing = torch.zeros_like(beta[own])
            advance_beta(
                self._meta, beta[own], nothing, moving, count, skipped, shared["meta_lr"], self._bounds
            )
        # live step sizes serve as this step's where nobody has touched them, β or a multiplier since they were written
        written = [(x, x._version) for x in (beta, *lives)], self._multipliers
        before, self._published = self._published, written
        self._arrays.job.published = before is not None and (
            before[1] is written[1]
            and all(x is y and v == w for (x, v), (y, w) in zip(before[0], written[0], strict=True))
        )
        self._code.metaopt_step_weights(ctypes.byref(self._arrays.job))
        torch.autograd.graph.increment_version(self._params)


def _looks(tensors: Sequence[Tensor]) -> list[tuple[Any, ...]]:
    """What tensors' memory looks like, but for its address; ``x.data`` can be exchanged behind an optimizer's back."""
    return [(x.is_cpu, x.dtype, x.shape, x.stride(), x.is_neg()) for x in tensors]
