"""The step written with plain torch operations: correct for every rule, device, dtype and layout.

``one_tensor`` is the pure function that every faster kernel is tested against.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metaopt_hpo.optim.kernels.bucket import Bucket
from metaopt_hpo.optim.rules import Rule, State


def one_tensor(
    rule: Rule,
    w: Tensor,
    g: Tensor,
    h: Tensor,
    state: State,
    t: Tensor | float,
    alpha: Tensor,
    gamma: float,
    decay: float,
) -> tuple[Tensor, Tensor, State, Tensor]:
    """Lines 2–6 of Algorithm 3 for one tensor: (Δw, h', base state', h ⊙ g).

    Args:
        rule: the base rule.
        w, g, h, state: weights, gradient, trace and base state, all of one shape.
        t: number of this step, from 1.
        alpha: α, a scalar or of w's shape.
        gamma: γ.
        decay: κ.
    """
    u, new_state = rule.update(g, state, t)
    delta = -alpha * (u + decay * w)
    return delta, gamma * (1 - decay * alpha) * h + delta, new_state, h * g


class EagerKernel:
    """Tensor by tensor through :func:`one_tensor`; any rule, no compiler."""

    def advance(
        self,
        bucket: Bucket,
        rule: Rule,
        alpha: Tensor,
        gamma: float,
        scale: Tensor | None,
        z: Tensor,
        per_weight: bool,
    ) -> None:
        torch._foreach_add_(bucket.steps, 1.0)
        for i, p in enumerate(bucket.params):
            h = bucket.traces[i]
            state = tuple(tensors[i] for tensors in bucket.states)
            g = gradient(bucket.grads[i], h.dtype, scale, bucket.maximize)
            block = bucket.blocks[i]
            if per_weight:
                a = alpha[block : block + p.numel()].view(p.shape)
            else:
                a = alpha[block]
            delta, new_h, new_state, hg = one_tensor(
                rule,
                p.to(h.dtype),
                g,
                h,
                state,
                float(bucket.steps[i]),
                a * bucket.ratio,
                gamma,
                bucket.decay,
            )
            if per_weight:
                z[block : block + p.numel()].add_(hg.reshape(-1))
            else:
                z[block].add_(hg.sum())
            p.add_(delta.to(p.dtype) if p.dtype == h.dtype else delta)
            h.copy_(new_h)
            for old, new in zip(state, new_state, strict=True):
                old.copy_(new)


def gradient(g: Tensor, dtype: torch.dtype, scale: Tensor | None, maximize: bool) -> Tensor:
    """The gradient as the rules see it: in the state's dtype, clipped, and negated where the loss is
    maximised."""
    g = g.to(dtype)
    if scale is not None:
        g = g * scale
    return -g if maximize else g
