"""Which examples make up the batch of a step: shuffled epochs as a pure function of seed and step."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from metaopt_hpo.workloads.base import step_generator

FIRST_EPOCH = 2**30
"""Epochs draw from the generators of steps that no run reaches."""


def batch_indices(count: int, examples: int, step: int, seed: int) -> Tensor:
    """Indices of the batch of step `step`, (examples,): epochs are shuffled anew and follow without a gap.

    Args:
        count: examples in the training part.
        examples: batch size; it may exceed `count`.
        step: number of the step, 0-based.
        seed: of the order.
    """
    position = step * examples
    parts: list[Tensor] = []
    missing = examples
    while missing:
        epoch, offset = divmod(position, count)
        part = _order(count, epoch, seed)[offset : offset + missing]
        parts.append(part)
        position += len(part)
        missing -= len(part)
    return torch.cat(parts)


@lru_cache(maxsize=8)
def _order(count: int, epoch: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=step_generator(seed, FIRST_EPOCH + epoch))
