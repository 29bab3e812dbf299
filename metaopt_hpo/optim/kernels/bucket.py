"""What a kernel is given: parameters of one group that one call may advance together, with their state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from metaopt_hpo.optim.rules import Rule
from metaopt_hpo.optim.sharding import local


@dataclass
class Bucket:
    """Parameters of one group, device and dtype; every list has one entry a parameter.

    Attributes:
        ratio: lr_group / lr, the group's multiplier of exp β.
        decay: κ, decoupled weight decay.
        maximize: whether the step goes up the gradient.
        per_weight: whether every weight has a step size of its own.
        dithered: whether bfloat16 weights are rounded at random in proportion.
        params, grads: weights and gradients.
        states: for every name in the base rule's ``states``, the list of its tensors.
        traces: h.
        steps: number of steps taken so far, 0-dim float32 tensors on the CPU.
        names: the parameters' names, or None.
        blocks: index of the block; with ``per_weight`` the offset of the first weight in β.
    """

    ratio: float
    decay: float
    maximize: bool
    per_weight: bool = False
    dithered: bool = False
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    states: tuple[list[Tensor], ...] = ()
    traces: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)

    def local(self) -> Bucket:
        """The same parameters, each as the part that this process holds."""
        return Bucket(
            self.ratio,
            self.decay,
            self.maximize,
            self.per_weight,
            self.dithered,
            [local(x) for x in self.params],
            [local(x) for x in self.grads],
            tuple([local(x) for x in tensors] for tensors in self.states),
            [local(x) for x in self.traces],
            self.steps,
            self.blocks,
            self.names,
        )

    def pick(self, indices: list[int]) -> Bucket:
        """The bucket of some of these parameters (the same tensors)."""
        return Bucket(
            self.ratio,
            self.decay,
            self.maximize,
            self.per_weight,
            self.dithered,
            [self.params[i] for i in indices],
            [self.grads[i] for i in indices],
            tuple([tensors[i] for i in indices] for tensors in self.states),
            [self.traces[i] for i in indices],
            [self.steps[i] for i in indices],
            [self.blocks[i] for i in indices],
            [self.names[i] for i in indices] if self.names else [],
        )


class Kernel(Protocol):
    """One implementation of lines 2–6 of the step (Algorithm 3)."""

    name: str

    def advance(
        self, bucket: Bucket, rule: Rule, alpha: Tensor, gamma: float, scale: Tensor | None, z: Tensor
    ) -> None:
        """Advance weights, base state, trace and step counters of a bucket in place and add its part of z.

        Args:
            bucket: what to advance.
            rule: the base rule.
            alpha: exp β, one entry a block, on the bucket's device.
            gamma: γ.
            scale: a 0-dim factor of the gradient (gradient clipping), or None.
            z: where each block's Σ h·g (old h) is added, one entry a block, on the bucket's device.
        """
