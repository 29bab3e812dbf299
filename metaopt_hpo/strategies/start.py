"""How large a first step is, whatever the optimizer: the step size that would change weights by their own size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

import torch
from torch import Tensor

from metaopt_hpo.optim.rules import Rule


@torch.no_grad()
def relative_step(params: Iterable[Tensor], rule: Rule) -> float:
    """The step size whose first update would be as large as the weights: the median of RMS(w) / RMS(u).

    The median is over the tensors of two or more dimensions that have a gradient (over all, where there are none
    such), so that single tensors that start at zero, embeddings or scales do not decide. It reads numbers from the
    device; call it once, before the first step.

    Args:
        params: with their gradients in `.grad`.
        rule: base rule, whose first direction u counts.

    Returns:
        A positive number, or infinity where nothing can be said (no gradient, or weights that are zero).
    """
    known = [(p, p.grad) for p in params if p.grad is not None]
    matrices = [(p, g) for p, g in known if p.ndim >= 2] or known
    ratios = []
    for p, g in matrices:
        g = g.to(torch.promote_types(g.dtype, torch.float32))
        direction, _ = rule.update(g, tuple(torch.zeros_like(g) for _ in rule.states), 1.0)
        update = _root_mean_square(direction)
        if update > 0:
            ratios.append(_root_mean_square(p) / update)
    middle = statistics.median(ratios) if ratios else 0.0
    return middle if middle > 0 and math.isfinite(middle) else math.inf


def _root_mean_square(t: Tensor) -> float:
    norm = torch.linalg.vector_norm(t.detach().float())
    whole = getattr(norm, "full_tensor", None)  # of a sharded tensor
    return float(norm if whole is None else whole()) / math.sqrt(t.numel())
