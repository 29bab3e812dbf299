"""The pure function of the step through torch.compile: Inductor makes Triton of it on a GPU and C++ on a CPU.

Any rule runs here, a user's own too. On a CPU the sums of h·g are taken in a pass of their own: beside the
updates, CPU Inductor of torch 2.13 fails on them (a KeyError in its outer-loop fusion).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim.kernels.bucket import Bucket
from metaopt_hpo.optim.kernels.eager import EagerKernel, gradient, one_tensor
from metaopt_hpo.optim.kernels.layout import computed_in
from metaopt_hpo.optim.rules import Rule

SIGNATURES = 32
"""How many different lists of shapes one process compiles for; later ones run eagerly."""


class CompiledKernel:
    """One graph over the whole list of tensors."""

    name = "inductor"

    def __init__(self) -> None:
        self._graph = torch.compile(_graph, fullgraph=True, dynamic=False)
        self._seen: set[Any] = set()
        self._eager = EagerKernel()

    def advance(
        self, bucket: Bucket, rule: Rule, alpha: Tensor, gamma: float, scale: Tensor | None, z: Tensor
    ) -> None:
        shapes = tuple((p.shape, p.stride(), p.dtype) for p in bucket.params)
        self._seen.add((shapes, tuple(bucket.blocks), rule, gamma, bucket.decay, bucket.maximize))
        short = any(h.dtype != computed_in(p) for p, h in zip(bucket.params, bucket.traces, strict=True))
        if short or bucket.per_weight or len(self._seen) > SIGNATURES:
            self._eager.advance(bucket, rule, alpha, gamma, scale, z)
            return
        torch._foreach_add_(bucket.steps, 1.0)
        beside = not bucket.params[0].is_cpu
        if not beside:
            for h, raw, block in zip(bucket.traces, bucket.grads, bucket.blocks, strict=True):
                g = gradient(raw, h.dtype, scale, bucket.maximize)
                z[block].add_((h * g).sum())
        with torch._dynamo.config.patch(recompile_limit=2 * SIGNATURES):
            sums = self._graph(
                bucket.params,
                bucket.grads,
                bucket.states,
                bucket.traces,
                [t.double() for t in bucket.steps],
                [alpha[block] for block in bucket.blocks],
                torch.tensor(bucket.ratio, dtype=torch.float64),
                scale,
                rule,
                gamma,
                bucket.decay,
                bucket.maximize,
                beside,
            )
        for block, part in zip(bucket.blocks, sums, strict=False):
            z[block].add_(part)


def _graph(
    params: list[Tensor],
    grads: list[Tensor],
    states: tuple[list[Tensor], ...],
    traces: list[Tensor],
    steps: list[Tensor],
    alphas: list[Tensor],
    ratio: Tensor,
    scale: Tensor | None,
    rule: Rule,
    gamma: float,
    decay: float,
    maximize: bool,
    beside: bool,
) -> list[Tensor]:
    sums: list[Tensor] = []
    for i, (p, h) in enumerate(zip(params, traces, strict=True)):
        state = tuple(tensors[i] for tensors in states)
        g = gradient(grads[i], h.dtype, scale, maximize)
        a = alphas[i] * ratio
        delta, new_h, new_state, hg = one_tensor(rule, p.to(h.dtype), g, h, state, steps[i], a, gamma, decay)
        if beside:
            sums.append(hg.sum())
        p.copy_(p.to(h.dtype) + delta)
        h.copy_(new_h)
        for old, new in zip(state, new_state, strict=True):
            old.copy_(new)
    return sums
