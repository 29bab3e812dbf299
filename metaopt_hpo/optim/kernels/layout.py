"""Whether a tensor's elements fill one run of memory, and that run as a flat view."""

from __future__ import annotations

from torch import Tensor


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
    """The memory of a dense tensor as a 1-d view, in memory order (the same order for tensors of equal
    strides)."""
    return x.as_strided((x.numel(),), (1,)) if not x.is_contiguous() else x.view(-1)
