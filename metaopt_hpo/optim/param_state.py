"""The state of one parameter: made, held against the parameter, moved along with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim import hessian
from metaopt_hpo.optim.kernels.layout import computed_in
from metaopt_hpo.optim.rules import Rule
from metaopt_hpo.optim.sharding import is_sharded, shard_key
from metaopt_hpo.optim.traces import HESSIAN_FREE

DELETE = "delete it with `del optimizer.state[p]`"


def init(
    p: Tensor,
    state: dict[str, Any],
    rule: Rule,
    name: str,
    *,
    trace: str,
    short: torch.dtype | None,
    count: int,
) -> None:
    """Fill a parameter's empty state.

    Args:
        p: the parameter.
        state: what to fill.
        rule: its base rule.
        name: what it is called in messages.
        trace: which trace is kept.
        short: dtype of h for all but float64 weights, or None.
        count: number of blocks, for traces with Hessian-vector products.

    Raises:
        ValueError: the parameter is sharded, and its rule needs it whole.
    """
    if is_sharded(p) and not rule.elementwise and shard_key(p):
        raise ValueError(
            f"{name} is sharded, and {type(rule).__name__} needs whole tensors (it is not elementwise): use an "
            "elementwise rule, or do not shard this parameter"
        )
    state["step"] = torch.zeros((), dtype=torch.float32, device=_counted_on(p))
    wide = p.detach().to(computed_in(p))
    zeros = torch.zeros_like(wide, memory_format=torch.preserve_format)
    for own, value in zip(rule.states, rule.init_state(wide), strict=True):
        state[own] = value.clone() if value is wide or value is p else value
    if trace == HESSIAN_FREE:
        state["h"] = zeros if short is None or p.dtype == torch.float64 else zeros.to(short)
    else:
        state |= hessian.init_state(trace, zeros, count, {own: state[own] for own in rule.states})


def fit(p: Tensor, state: dict[str, Any], rule: Rule, name: str, *, short: torch.dtype | None) -> None:
    """Look at whether a state still fits its parameter.

    A parameter that has moved to another device or dtype takes its state along; one that has changed its shape is
    refused, for which of its weights are which is not known. Arguments as of :func:`init`.

    Raises:
        ValueError: another shape, a parameter that is no longer one, a state that is damaged.
    """
    if not p.is_floating_point():
        raise ValueError(f"{name} has become {p.dtype}: only floating-point parameters can be optimised")
    for own in ("h", *rule.states):
        if not isinstance(state.get(own), Tensor):
            raise ValueError(f"the state of {name} has no tensor {own!r}: {DELETE}")
    count = state.get("step", 0.0)
    if not isinstance(count, Tensor) or count.dtype != torch.float32 or count.ndim:
        given = torch.as_tensor(count).detach()
        state["step"] = given.to(_counted_on(p), torch.float32, copy=True).reshape(())
    h = state["h"]
    if h.shape != p.shape:
        raise ValueError(
            f"{name} has changed its shape from {tuple(h.shape)} to {tuple(p.shape)} since its last step: put a new "
            "Parameter into the group, or delete its state with `del optimizer.state[p]`"
        )
    if rule.elementwise and type(rule).init_state is Rule.init_state:
        for own in rule.states:
            if state[own].shape != p.shape:
                found = tuple(state[own].shape)
                raise ValueError(
                    f"the state {own!r} of {name} has the shape {found}, not {tuple(p.shape)}: {DELETE}"
                )
    wide = computed_in(p)
    if (
        h.device == p.device
        and h.dtype in (wide, torch.bfloat16)
        and (h.dtype == wide or wide == torch.float32)
    ):
        return
    for own in (*rule.states, "h"):
        x = state[own]
        if x.device != p.device or (x.is_floating_point() and x.dtype not in (wide, short)):
            state[own] = x.to(device=p.device, dtype=wide if x.is_floating_point() else x.dtype)
    state["step"] = state["step"].to(_counted_on(p))


def check_gradient(p: Tensor, g: Tensor, name: str) -> None:
    """Raise ``ValueError`` for a gradient that does not belong to its parameter."""
    if g.layout is not torch.strided:
        raise ValueError(f"{name} has a sparse gradient, which is not supported")
    if g.shape != p.shape:
        raise ValueError(
            f"{name} has the shape {tuple(p.shape)} and its gradient {tuple(g.shape)}: zero the gradients after a "
            "parameter has been changed in place"
        )
    if g.device != p.device:
        raise ValueError(f"{name} is on {p.device} and its gradient on {g.device}")


def _counted_on(p: Tensor) -> torch.device:
    """Where a parameter's steps are counted: a number on a CPU spares launches, one on a GPU spares waiting for it."""
    return p.device if p.is_cuda else torch.device("cpu")
