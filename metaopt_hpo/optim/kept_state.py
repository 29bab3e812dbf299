"""What MetaOptimize keeps: state shared by all parameters, state of each, live step sizes; saving and loading
it.

What does not belong to a single parameter (β, the meta rule's state, counters) is kept in ``param_groups[0]``
as tensors and numbers, for that is what every checkpoint format of torch, the distributed one included, carries
along.
"""

from __future__ import annotations

import math
from itertools import accumulate, chain, pairwise
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim import hessian
from metaopt_hpo.optim.arguments import check_group
from metaopt_hpo.optim.blocks import Blocks, BlockSpec, assign
from metaopt_hpo.optim.kernels.bucket import Kernel
from metaopt_hpo.optim.kernels.layout import computed_in
from metaopt_hpo.optim.kernels.native import WholeStep
from metaopt_hpo.optim.rules import Rule
from metaopt_hpo.optim.sharding import is_sharded
from metaopt_hpo.optim.traces import LIMITS

STATE_VERSION = 1


class KeptState(torch.optim.Optimizer):
    """The part of MetaOptimize that makes, publishes, saves and loads its state; the steps are in the class
    above it."""

    _base: Rule
    _meta: Rule
    _trace: str
    _trace_dtype: torch.dtype | None
    _block_spec: BlockSpec
    _blocks: Blocks | None
    _kernel: Kernel | None
    _whole: WholeStep | None
    _live: list[Tensor | slice | int] | None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its blocks, where they are new ones, start at the initial step size."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_group(group)
        except ValueError:
            self.param_groups.pop()
            raise
        group["lr"] = float(group["lr"])
        if self._blocks is not None:
            self._extend_shared()

    def _init_shared(self, meta_lr: float) -> None:
        params = self._all_params()
        self._blocks = assign(params, self._names(), self._block_spec)
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in params) else torch.float32
        device = next((p.device for p in params if p.requires_grad), params[0].device)
        beta = torch.full((self._blocks.count,), math.log(self.defaults["lr"]), dtype=dtype, device=device)
        shared = self.param_groups[0]
        shared["meta_lr"] = meta_lr
        shared["beta"] = beta
        shared["meta_step"] = torch.zeros_like(beta)
        for name in self._meta.states:
            shared[f"meta_{name}"] = torch.zeros_like(beta)
        shared["skipped"] = torch.zeros((), dtype=torch.int64, device=device)
        shared["state_version"] = STATE_VERSION
        shared["rules"] = self._rules_name()
        shared["kernel"] = ""
        if self._trace != "hessian_free":
            if any(is_sharded(p) for p in params):
                raise ValueError(
                    f"trace={self._trace!r} does not support sharded parameters: use 'hessian_free'"
                )
            self._check_trace_size()
            shared |= hessian.init_shared(self._trace, beta, self._meta.states)
            self._init_states()
        self._refresh_step_sizes()

    def _rules_name(self) -> str:
        return f"{type(self._base).__name__} / {type(self._meta).__name__} / {self._trace}"

    def _check_trace_size(self) -> None:
        assert self._blocks is not None
        n, m = sum(p.numel() for p in self._all_params()), self._blocks.count
        size, limit = n * m * (m if self._trace == "exact" else 1), LIMITS[self._trace]
        if size > limit:
            product = f"{n} weights × {m} blocks" + (f" × {m}" if self._trace == "exact" else "")
            raise ValueError(
                f"trace={self._trace!r} would keep {product} = {size} numbers, more than {limit}: "
                "use coarser blocks, or trace='hessian_free'"
            )

    def _extend_shared(self) -> None:
        assert self._blocks is not None
        if self._trace != "hessian_free":
            raise ValueError(f"trace={self._trace!r}: a group cannot be added once the optimizer is made")
        self._blocks = assign(self._all_params(), self._names(), self._block_spec)
        self._live = self._whole = None
        shared = self.param_groups[0]
        extra = self._blocks.count - shared["beta"].numel()
        start = shared["beta"].new_full((extra,), math.log(self.defaults["lr"]))
        shared["beta"] = torch.cat([shared["beta"], start])
        for name in ("meta_step", *(f"meta_{name}" for name in self._meta.states)):
            shared[name] = torch.cat([shared[name], torch.zeros_like(start)])
        self._refresh_step_sizes()

    def _init_states(self) -> None:
        for p in self._all_params():
            if (p.requires_grad or p.grad is not None) and not self.state[p]:
                self._init_state(p, self.state[p])

    def _init_state(self, p: Tensor, state: dict[str, Any]) -> None:
        assert self._blocks is not None
        state["step"] = torch.zeros((), dtype=torch.float32)
        zeros = torch.zeros_like(p, dtype=computed_in(p), memory_format=torch.preserve_format)
        for name in self._base.states:
            state[name] = zeros.clone()
        if self._trace == "hessian_free":
            short = self._trace_dtype if p.dtype != torch.float64 else None
            state["h"] = zeros if short is None else zeros.to(short)
        else:
            state |= hessian.init_state(self._trace, zeros, self._blocks.count, self._base.states)

    def _moving(self, p: Tensor) -> list[Tensor]:
        """The state of a parameter that has its shape."""
        state = self.state[p]
        return [state[name] for name in (*self._base.states, "h")]

    def _names(self) -> list[str] | None:
        if not self.param_groups or "param_names" not in self.param_groups[0]:
            return None
        return list(chain.from_iterable(group["param_names"] for group in self.param_groups))

    def _name_of(self, p: Tensor) -> str:
        names = self._names()
        for i, q in enumerate(self._all_params()):
            if q is p:
                return f"parameter {names[i]!r}" if names is not None else f"parameter number {i}"
        return "a parameter"

    def _all_params(self) -> list[Tensor]:
        return list(chain.from_iterable(group["params"] for group in self.param_groups))

    def step_sizes(self) -> Tensor:
        """exp β, one value a block (before the groups' and schedulers' multipliers lr_group / lr); a copy."""
        beta: Tensor = self.param_groups[0]["beta"]
        return beta.exp()

    def block_names(self) -> tuple[str, ...]:
        """What the entries of ``step_sizes()`` belong to, in the same order."""
        assert self._blocks is not None
        return self._blocks.names

    def _own_blocks(self) -> list[list[int]]:
        """For each group the blocks that occur in it, in order (not for weight blocks)."""
        assert self._blocks is not None
        of = iter(self._blocks.of)
        return [list(dict.fromkeys(next(of) for _ in group["params"])) for group in self.param_groups]

    def _live_index(self) -> list[Tensor | slice | int]:
        """Where each group's step sizes are in β; kept, for making an index on a device waits for it."""
        if self._live is None:
            beta: Tensor = self.param_groups[0]["beta"]
            assert self._blocks is not None
            if self._blocks.per_weight:
                ends = list(
                    accumulate((sum(p.numel() for p in g["params"]) for g in self.param_groups), initial=0)
                )
                self._live = [slice(start, end) for start, end in pairwise(ends)]
            else:
                self._live = [
                    own[0] if len(own) == 1 else torch.tensor(own, dtype=torch.int64, device=beta.device)
                    for own in self._own_blocks()
                ]
        return self._live

    @torch.no_grad()
    def _refresh_step_sizes(self) -> None:
        """Write the live step sizes into the groups: one value for each block that occurs in the group."""
        alpha = self.step_sizes()
        for group, index in zip(self.param_groups, self._live_index(), strict=True):
            value = alpha[index] * (group["lr"] / self.defaults["lr"])
            live = group.get("step_size")
            if live is not None and live.shape == value.shape and live.device == value.device:
                live.copy_(value)
            else:
                group["step_size"] = value

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict()`` returned; a run that goes on from it is bitwise the run that never
        stopped.

        Raises:
            ValueError: a state of another optimizer, of a newer version, or of other rules or blocks.
        """
        self._check_loadable(state_dict)
        own = self.param_groups[0]
        kept = {name: own[name] for name in self._shared_tensors()}
        super().load_state_dict(state_dict)
        own = self.param_groups[0]
        for name, old in kept.items():
            own[name] = own[name].to(device=old.device, dtype=old.dtype)
        own["state_version"] = STATE_VERSION
        self._restore_precision(state_dict)
        for group in self.param_groups:
            group.pop("step_size", None)
        self._kernel = self._whole = self._live = None
        self._refresh_step_sizes()

    def _shared_tensors(self) -> tuple[str, ...]:
        names = ("beta", "meta_step", "skipped", *(f"meta_{name}" for name in self._meta.states))
        if self._trace == "hessian_free":
            return names
        return (*names, *hessian.init_shared(self._trace, torch.zeros(0), self._meta.states))

    def _check_loadable(self, state_dict: dict[str, Any]) -> None:
        shared = state_dict["param_groups"][0] if state_dict.get("param_groups") else {}
        if "state_version" not in shared:
            raise ValueError("this state dict has no state_version: it is not one of MetaOptimize")
        version = int(shared["state_version"])
        if version > STATE_VERSION:
            raise ValueError(
                f"this state dict has state_version {version}, above {STATE_VERSION}: upgrade metaopt-hpo"
            )
        if shared["rules"] != self._rules_name():
            raise ValueError(
                f"this state dict was saved with other rules (base / meta / trace): {shared['rules']}, "
                f"not {self._rules_name()}"
            )
        own, loaded = self.param_groups[0]["beta"].numel(), shared["beta"].numel()
        if own != loaded:
            raise ValueError(
                f"this state dict has {loaded} blocks and this optimizer {own}: saved with other blocks"
            )

    def _restore_precision(self, state_dict: dict[str, Any]) -> None:
        """Put back the saved values that torch has cast to the parameters' dtype while loading."""
        ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for key, p in zip(ids, self._all_params(), strict=True):
            saved = state_dict["state"].get(key)
            if not saved:
                continue
            fresh: dict[str, Any] = {}
            self._init_state(p, fresh)
            for name, value in fresh.items():
                value.copy_(saved[name])
            self.state[p] = fresh

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what is bound to this process (a kernel and its arrays are found again)."""
        return {**self.__dict__, "_kernel": None, "_whole": None, "_live": None}
