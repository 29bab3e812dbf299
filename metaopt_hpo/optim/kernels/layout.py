"""How a tensor lies in memory and in which precision it is worked on; rounding to a short trace."""

from __future__ import annotations

import torch
from torch import Tensor


def computed_in(p: Tensor) -> torch.dtype:
    """The dtype of a weight's state and of the step's arithmetic: float64 for float64 weights, else float32."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def is_dense(x: Tensor) -> bool:
    """Whether x has no gaps and no overlaps in memory (contiguous up to an order of its dimensions)."""
    if x.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def flat(x: Tensor) -> Tensor:
    """The memory of a dense tensor as a 1-d view, in memory order (the same order for tensors of equal strides)."""
    return x.as_strided((x.numel(),), (1,)) if not x.is_contiguous() else x.view(-1)


WEIGHTS = 0x5BD1E995
"""Salt of the noise by which weights are rounded, so that it differs from that of traces."""


def dither_(short: Tensor, x: Tensor, step: Tensor | float, *, salt: int = 0) -> None:
    """Write float32 x into a bfloat16 tensor, to one of the two neighbours at random in proportion.

    On average nothing is lost, where rounding to nearest would drop every increment below 1/512 of the value.
    The noise is a hash of step, element and salt, so that runs repeat bit by bit.
    """
    mask = 0xFFFFFFFF
    count = step.long() if isinstance(step, Tensor) else int(step)
    seed = (count * 0x27D4EB2F & mask) ^ salt
    noise = torch.arange(x.numel(), device=x.device) * 0x9E3779B1 + seed & mask
    noise = ((noise ^ (noise >> 16)) * 0x85EBCA6B) & mask
    noise = ((noise ^ (noise >> 13)) * 0xC2B2AE35) & mask
    bits = x.contiguous().view(torch.int32).reshape(-1)
    up = torch.where(torch.isfinite(x).reshape(-1), noise >> 16, 0).to(torch.int32)
    cut = ((bits + up) >> 16 << 16).view(torch.float32).view(x.shape)
    short.copy_(torch.where(torch.isnan(x), x, cut))
