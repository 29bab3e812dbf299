"""How large a first step is, whatever the optimizer: the step size that would change weights by their own size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from metaopt_hpo.optim.rules import Rule


@torch.no_grad()
def relative_step(
    params: Iterable[Tensor],
    rule: Rule,
    names: Mapping[Tensor, str] = MappingProxyType({}),
    given: Mapping[Tensor, Tensor] = MappingProxyType({}),
) -> float:
    """The step size whose first update would be as large as the weights: the median of RMS(w) / RMS(u).

    The median is over the tensors of two or more dimensions whose update is not zero (over all, where there are none
    such), so that single tensors, embeddings or scales, do not decide. Weights that start at zero (a zero head, LoRA's
    B) have no size of their own: theirs is the median of the others', those without a first gradient (LoRA's A)
    included, and 1/√fan-in where all are zero. It reads numbers from the device; call it before the first step.

    Args:
        params: with their gradients in `.grad`.
        rule: base rule, whose first direction u counts.
        names: of parameters, for a rule that tells them apart by name (Muon).
        given: first directions that are known, which no rule is asked for.

    Returns:
        A positive number, or infinity where nothing can be said, since no gradient differs from zero.
    """
    tensors = list(params)
    matrices = [p for p in tensors if p.ndim >= 2]
    if not any(_moves(p) for p in matrices):
        matrices = tensors
    sizes = {p: _root_mean_square(p) for p in matrices}
    typical = statistics.median([s for s in sizes.values() if s > 0] or [0.0])
    ratios = []
    for p in matrices:
        if p.grad is None:
            continue
        direction = given.get(p)
        if direction is None:
            g = p.grad.to(torch.promote_types(p.grad.dtype, torch.float32))
            own = rule.for_parameter(names.get(p), p)
            direction, _ = own.update(g, tuple(torch.zeros_like(g) for _ in own.states), 1.0)
        update = _root_mean_square(direction)
        if update > 0 and math.isfinite(update):
            ratios.append((sizes[p] or typical or max(1, math.prod(p.shape[1:])) ** -0.5) / update)
    middle = statistics.median(ratios) if ratios else 0.0
    return middle if middle > 0 and math.isfinite(middle) else math.inf


def _moves(p: Tensor) -> bool:
    return p.grad is not None and _root_mean_square(p.grad) > 0


def _root_mean_square(t: Tensor) -> float:
    norm = torch.linalg.vector_norm(t.detach().float())
    whole = getattr(norm, "full_tensor", None)  # of a sharded tensor
    return float(norm if whole is None else whole()) / math.sqrt(t.numel())
