"""Sharded parameters (DTensor, as FSDP2 makes them): their local parts, and sums over all shards.

Every process advances its own shards; the blocks' partial sums are reduced once a step. Along replicated
dimensions of a mesh the copies are equal, so nothing is added up there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

if dist.is_available():
    from torch.distributed.tensor import DTensor
else:  # a torch built without distributed support has no DTensor
    DTensor = ()  # type: ignore[assignment, misc]

ShardKey = tuple[Any, ...]


def is_sharded(x: Tensor) -> bool:
    """Whether x is a DTensor."""
    return isinstance(x, DTensor)


def local(x: Tensor) -> Tensor:
    """The part of x that this process holds: x itself unless it is a DTensor."""
    return x.to_local() if isinstance(x, DTensor) else x


def shard_key(x: Tensor) -> ShardKey:
    """What tells tensors apart whose sums need different reductions: the mesh and its sharded dimensions."""
    if not isinstance(x, DTensor):
        return ()
    dims = tuple(i for i, placement in enumerate(x.placements) if placement.is_shard())
    return (x.device_mesh, *dims) if dims else ()


def like_shards(g: Tensor, p: Tensor) -> Tensor:
    """A gradient laid out over the mesh as its parameter is."""
    if isinstance(p, DTensor) and isinstance(g, DTensor) and g.placements != p.placements:
        return g.redistribute(p.device_mesh, p.placements)
    return g


def reduce_sums(parts: dict[ShardKey, Tensor], like: Tensor) -> Tensor:
    """Σ over all shards of each part, and over the parts; one reduction a mesh dimension."""
    total = torch.zeros_like(like)
    for key, part in parts.items():
        for dim in key[1:]:
            dist.all_reduce(part, group=key[0].get_group(dim))
        total += part.to(total.device)
    return total
