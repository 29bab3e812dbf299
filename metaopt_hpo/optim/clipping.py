"""Clipping of gradients by their global norm, over all shards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metaopt_hpo.optim.sharding import ShardKey, local, reduce_sums, shard_key


def clip_factor(
    greatest: float | None, params: Sequence[Tensor], grads: Sequence[Tensor], like: Tensor
) -> Tensor | None:
    """min(1, greatest / norm of all gradients) as a number of the dtype and device of ``like``; None without clipping.

    The denominator has 1e-6 more, as in ``torch.nn.utils.clip_grad_norm_``.
    """
    if greatest is None or not grads:
        return None
    squares: dict[ShardKey, Tensor] = {}
    norms = torch._foreach_norm([local(g) for g in grads], 2)
    for p, norm in zip(params, norms, strict=True):
        key = shard_key(p)
        squares[key] = squares.get(key, like.new_zeros(())) + norm.to(like) ** 2
    norm = reduce_sums(squares, like.new_zeros(())).sqrt()
    return torch.clamp(greatest / (norm + 1e-6), max=1.0)
