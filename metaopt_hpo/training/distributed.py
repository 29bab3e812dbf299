"""The few collective steps of a distributed run; without `torch.distributed` they do nothing."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def is_distributed() -> bool:
    """True inside an initialised process group of more than one process."""
    d = torch.distributed
    return d.is_available() and d.is_initialized() and d.get_world_size() > 1


def rank() -> int:
    """This process's rank; 0 outside a process group."""
    return torch.distributed.get_rank() if is_distributed() else 0


def from_rank_0(value: T) -> T:
    """Rank 0's value, on every rank. Strategies and parameters suggested on rank 0 travel this way too."""
    if not is_distributed():
        return value
    box: list[Any] = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    result: T = box[0]
    return result


def min_over_ranks(loss: Tensor) -> Tensor:
    """`loss`, or NaN on every rank where it is not finite on any."""
    if not is_distributed():
        return loss
    finite = torch.isfinite(loss).to(torch.int32)
    torch.distributed.all_reduce(finite, op=torch.distributed.ReduceOp.MIN)
    return torch.where(finite.bool(), loss.detach(), torch.full_like(loss, torch.nan))
