"""What strategies need of distributed training: numbers on which all processes agree."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes: each sees a part of the batch, and their decisions must agree."""
    d = torch.distributed
    if not (d.is_available() and d.is_initialized()) or d.get_world_size() == 1:
        return value
    value = value.clone()
    d.all_reduce(value)
    return value / d.get_world_size()
