"""What a kernel is given: the parameters of one group that share device, dtype and layout of shards, with
their state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from metaopt_hpo.optim.rules import Rule


@dataclass
class Bucket:
    """Parameters that one kernel call may advance together; every list has one entry a parameter.

    Attributes:
        params, grads: weights and gradients (local shards where parameters are DTensors).
        states: for every name in the base rule's ``states``, the list of its tensors.
        traces: h.
        steps: number of steps taken so far, 0-dim float32 tensors on the CPU.
        blocks: index of the block; with weight blocks the offset of the first weight in β.
        ratio: lr_group / lr, the group's multiplier of exp(β).
        decay: κ, decoupled weight decay.
        maximize: whether the step goes up the gradient.
    """

    ratio: float
    decay: float
    maximize: bool
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    states: tuple[list[Tensor], ...] = ()
    traces: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)


class Kernel(Protocol):
    """One implementation of lines 2–6 of the step (the reference's Algorithm 3)."""

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
        """Advance weights, base state, trace and step counters of a bucket in place and add its part of z.

        Args:
            bucket: what to advance.
            rule: the base rule.
            alpha: exp(β), one entry a block, on the bucket's device.
            gamma: γ.
            scale: a 0-dim factor of the gradient (gradient clipping), or None.
            z: where each block's Σ h·g (old h) is added, one entry a block, on the bucket's device.
            per_weight: whether ``bucket.blocks`` are offsets of weight blocks.
        """
