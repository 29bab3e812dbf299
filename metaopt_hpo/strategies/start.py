"""How large a first step is, whatever the optimizer: the step size that would change weights by their own size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from metaopt_hpo.optim import host
from metaopt_hpo.optim.kernels.layout import computed_in
from metaopt_hpo.optim.rules import Rule, direction


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
    moving = [p for p in tensors if p.grad is not None]
    numbers = host.read(
        [_root_mean_square(x) for x in (*tensors, *(p.grad for p in moving if p.grad is not None))]
    )
    sizes = dict(zip(tensors, numbers, strict=False))
    moving = [p for p, size in zip(moving, numbers[len(tensors) :], strict=True) if size > 0]
    chosen = [p for p in tensors if p.ndim >= 2] if any(p.ndim >= 2 for p in moving) else tensors
    typical = statistics.median([sizes[p] for p in chosen if sizes[p] > 0] or [0.0])
    moving = [p for p in chosen if p.grad is not None]
    updates = host.read([_root_mean_square(_first(p, rule, names.get(p), given)) for p in moving])
    ratios = [
        (sizes[p] or typical or max(1, math.prod(p.shape[1:])) ** -0.5) / update
        for p, update in zip(moving, updates, strict=True)
        if update > 0 and math.isfinite(update)
    ]
    middle = statistics.median(ratios) if ratios else 0.0
    return middle if middle > 0 and math.isfinite(middle) else math.inf


def _first(p: Tensor, rule: Rule, name: str | None, given: Mapping[Tensor, Tensor]) -> Tensor:
    """The first direction of a parameter with a gradient."""
    if p in given:
        return given[p]
    assert p.grad is not None
    wide = computed_in(p)
    w, own = p.detach().to(wide), rule.for_parameter(name, p)
    u, _ = direction(own, p.grad.to(wide), own.init_state(w), 1.0, w, name)
    return u


def _root_mean_square(t: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(t.detach().float())
    whole = getattr(norm, "full_tensor", None)  # of a sharded tensor
    total: Tensor = norm if whole is None else whole()
    return total / math.sqrt(max(1, t.numel()))
