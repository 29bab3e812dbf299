"""State that all parameters of an optimizer share: β, the meta rule's state, counters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim import hessian
from metaopt_hpo.optim.blocks import Blocks
from metaopt_hpo.optim.rules import Rule
from metaopt_hpo.optim.sharding import is_sharded
from metaopt_hpo.optim.traces import HESSIAN_FREE, check_size

STATE_VERSION = 2


def start(
    params: Sequence[Tensor],
    blocks: Blocks,
    meta: Rule,
    *,
    trace: str,
    lr: float,
    meta_lr: float,
    rules: str,
) -> dict[str, Any]:
    """The shared state before the first step.

    Args:
        params: all parameters; β lies where the first trained one does, in float64 where any weight is.
        blocks: which weights share a step size.
        meta: the meta rule.
        trace: how the influence of past step sizes is followed.
        lr, meta_lr: α₀ and η.
        rules: the names of the rules, to know whose state it is.

    Raises:
        ValueError: a trace that sharded parameters cannot have, or that would be too large.
    """
    dtype = torch.float64 if any(p.dtype == torch.float64 for p in params) else torch.float32
    device = next((p.device for p in params if p.requires_grad), params[0].device)
    beta = torch.full((blocks.count,), math.log(lr), dtype=dtype, device=device)
    shared: dict[str, Any] = {"start_lr": lr, "meta_lr": meta_lr, "beta": beta}
    shared["meta_step"] = beta.new_zeros(1 if blocks.per_weight else beta.shape)
    for name, value in zip(meta.states, meta.init_state(beta), strict=True):
        shared[f"meta_{name}"] = value
    shared["skipped"] = torch.zeros((), dtype=torch.int64, device=device)
    shared["state_version"] = STATE_VERSION
    shared["rules"] = rules
    shared["kernel"] = ""
    if trace != HESSIAN_FREE:
        if any(is_sharded(p) for p in params):
            raise ValueError(f"trace={trace!r} does not support sharded parameters: use 'hessian_free'")
        check_size(trace, sum(p.numel() for p in params), blocks.count)
        shared |= hessian.init_shared(trace, beta, meta)
    return shared


@torch.no_grad()
def grow(shared: dict[str, Any], blocks: Blocks, meta: Rule, lr: float) -> None:
    """Make room for blocks that are new; they start at the initial step size."""
    beta: Tensor = shared["beta"]
    extra = blocks.count - beta.numel()
    if extra <= 0:
        return
    first = beta.new_full((extra,), math.log(lr))
    old, shared["beta"] = beta.numel(), torch.cat([beta, first])
    for name in ("meta_step", *(f"meta_{name}" for name in meta.states)):
        if shared[name].shape == (old,) and not (name == "meta_step" and blocks.per_weight):
            shared[name] = torch.cat([shared[name], torch.zeros_like(first)])
