"""The step written with plain torch operations: correct for every rule, device, dtype and layout.

``one_tensor`` is the pure function that every faster way is tested against. Rules that have a description also
run many tensors at a time, on a CPU in pieces that stay in the cache from the first operation to the last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metaopt_hpo.optim.kernels.bucket import Bucket
from metaopt_hpo.optim.kernels.describe import describe, is_described, numbers
from metaopt_hpo.optim.kernels.emit import run
from metaopt_hpo.optim.kernels.layout import WEIGHTS, computed_in, dither_, flat, is_dense
from metaopt_hpo.optim.rules import Rule, State, direction

PIECE = 65536
"""Elements that go through all operations together on a CPU: six tensors of them fit a core's second-level cache."""


def one_tensor(
    rule: Rule,
    w: Tensor,
    g: Tensor,
    h: Tensor,
    state: State,
    t: Tensor | float,
    alpha: Tensor,
    gamma: Tensor | float,
    decay: Tensor | float,
    name: str | None = None,
) -> tuple[Tensor, Tensor, State, Tensor]:
    """Lines 2–6 of Algorithm 3 for one tensor: (Δw, h', base state', h ⊙ g).

    Args:
        rule: the base rule.
        w, g, h, state: weights, gradient, trace and base state, all of one shape.
        t: number of this step, from 1.
        alpha: α, a scalar or of w's shape.
        gamma: γ.
        decay: κ.
        name: the parameter's, for rules that ask.
    """
    u, new_state = direction(rule, g, state, t, w, name)
    delta = -alpha * (u + decay * w)
    return delta, gamma * (1 - decay * alpha) * h + delta, new_state, h * g


class EagerKernel:
    """Torch operations only; any rule, no compiler."""

    name = "eager"

    def advance(
        self, bucket: Bucket, rule: Rule, alpha: Tensor, gamma: float, scale: Tensor | None, z: Tensor
    ) -> None:
        torch._foreach_add_(bucket.steps, 1.0)
        together: dict[tuple[int, float], list[int]] = {}
        rounded = bucket.dithered and any(p.dtype == torch.bfloat16 for p in bucket.params)
        known = not (bucket.per_weight or rounded) and is_described(rule)
        for i, (p, h) in enumerate(zip(bucket.params, bucket.traces, strict=True)):
            g = bucket.grads[i]
            same = p.stride() == h.stride() == g.stride() and is_dense(p) and not (p.is_neg() or g.is_neg())
            if known and same and bucket.steps[i].is_cpu and p.numel() > 0 and h.dtype == computed_in(p):
                together.setdefault((bucket.blocks[i], float(bucket.steps[i])), []).append(i)
            else:
                _one_by_one(bucket, i, rule, alpha, gamma, scale, z)
        for (block, t), indices in together.items():
            a = alpha[block] * bucket.ratio
            for piece in _pieces(bucket.pick(indices)):
                _in_place(piece, rule, a, t, gamma, scale, z[block])


def gradient(g: Tensor, dtype: torch.dtype, scale: Tensor | None, maximize: bool) -> Tensor:
    """The gradient as the rules see it: in the state's dtype, clipped, and negated where the loss is maximised."""
    g = g.to(dtype)
    if scale is not None:
        g = g * scale.to(dtype)
    return -g if maximize else g


def _one_by_one(
    bucket: Bucket, i: int, rule: Rule, alpha: Tensor, gamma: float, scale: Tensor | None, z: Tensor
) -> None:
    p, h, block = bucket.params[i], bucket.traces[i], bucket.blocks[i]
    state = tuple(tensors[i] for tensors in bucket.states)
    wide = computed_in(p)
    g = gradient(bucket.grads[i], wide, scale, bucket.maximize)
    own = slice(block, block + p.numel())
    a = (alpha[own].view(p.shape) if bucket.per_weight else alpha[block]) * bucket.ratio
    count = bucket.steps[i]
    t = float(count) if count.is_cpu else count.double()  # a number on a device is not waited for
    name = bucket.names[i] if bucket.names else None
    w, a = p.to(wide), a.to(wide)
    if bucket.per_weight:
        z[own].add_((h.to(wide) * g).reshape(-1))
    else:
        z[block].add_(torch.sum(h.to(wide) * g))
    # one_tensor in place, without what multiplies by 0 or 1
    u, new_state = direction(rule, g, state, t, w, name)
    delta = (u.add(w, alpha=bucket.decay) if bucket.decay else u) * -a
    keep = gamma * (1 - bucket.decay * a) if bucket.decay else gamma
    if h.dtype != wide:
        dither_(h, keep * h.to(wide) + delta, t)
    else:
        (h if isinstance(keep, float) and keep == 1.0 else h.mul_(keep)).add_(delta)
    if bucket.dithered and p.dtype == torch.bfloat16:
        dither_(p, w + delta, t, salt=WEIGHTS)
    else:
        p.add_(delta)
    for old, new in zip(state, new_state, strict=True):
        old.copy_(new)


def _pieces(bucket: Bucket) -> list[Bucket]:
    """The bucket as flat views; on a CPU cut into batches of about :data:`PIECE` elements."""
    columns = [bucket.params, bucket.grads, *bucket.states, bucket.traces]
    views = [[flat(x) for x in column] for column in columns]
    if not bucket.params[0].is_cpu:
        return [_flat_bucket(bucket, views)]
    batches: list[list[list[Tensor]]] = []
    room = 0
    for row in zip(*views, strict=True):
        for cut in zip(*(x.split(PIECE) for x in row), strict=True):
            if not batches or room < cut[0].numel():
                batches.append([[] for _ in columns])
                room = PIECE
            room -= cut[0].numel()
            for column, x in zip(batches[-1], cut, strict=True):
                column.append(x)
    return [_flat_bucket(bucket, batch) for batch in batches]


def _flat_bucket(bucket: Bucket, columns: list[list[Tensor]]) -> Bucket:
    params, grads, *states, traces = columns
    return Bucket(
        bucket.ratio, bucket.decay, bucket.maximize, False, False, params, grads, tuple(states), traces
    )


def _in_place(
    piece: Bucket, rule: Rule, alpha: Tensor, t: float, gamma: float, scale: Tensor | None, z: Tensor
) -> None:
    """Lines 2–6 for tensors of one block and one step count; their z is added to the 0-dim ``z``."""
    params, traces = piece.params, piece.traces
    dtype = traces[0].dtype
    grads = [g.to(dtype) for g in piece.grads] if piece.grads[0].dtype != dtype else piece.grads
    if scale is not None:
        grads = list(torch._foreach_mul(grads, scale.to(dtype)))
    if piece.maximize:
        grads = list(torch._foreach_neg(grads))
    z.add_(torch.stack([torch.dot(h, g) for h, g in zip(traces, grads, strict=True)]).sum())
    inputs = {"g": grads, **{f"s{k}": column for k, column in enumerate(piece.states)}}
    if "weight" in rule.needs:
        inputs["w"] = [p.to(dtype) for p in params]
    u, new = run(describe(rule), list(numbers(rule).values()), t, inputs)
    step, keep = _factors(alpha, gamma, piece.decay)
    delta = list(torch._foreach_mul(u, step))
    for column, values in zip(piece.states, new, strict=True):
        torch._foreach_copy_(column, values)
    if piece.decay:
        weights = [p.to(dtype) for p in params] if params[0].dtype != dtype else params
        if isinstance(step, float):
            torch._foreach_add_(delta, weights, alpha=step * piece.decay)
        else:
            torch._foreach_add_(delta, torch._foreach_mul(weights, step * piece.decay))
    if not (isinstance(keep, float) and keep == 1.0):
        torch._foreach_mul_(traces, keep)
    torch._foreach_add_(traces, delta)
    torch._foreach_add_(params, delta)


def _factors(alpha: Tensor, gamma: float, decay: float) -> tuple[float | Tensor, float | Tensor]:
    """(−α, γ(1 − κα)): numbers where α is on the CPU, tensors elsewhere, for reading them would wait for the device."""
    if alpha.is_cpu:
        a = float(alpha)
        return -a, gamma * (1 - decay * a)
    return -alpha, gamma * (1 - decay * alpha) if decay else gamma
