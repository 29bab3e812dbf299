"""The update of β: one step of the meta rule, and what is done when z cannot be used.

A block whose z, new β or new meta state is not finite keeps its β and its meta state; so β never becomes NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metaopt_hpo.optim.rules import Rule, State, direction


def advance_beta(
    rule: Rule,
    beta: Tensor,
    z: Tensor,
    state: Sequence[Tensor],
    step: Tensor,
    skipped: Tensor,
    meta_lr: float,
    bounds: tuple[float, float] | None,
) -> None:
    """Advance β, the meta state and its step counters in place (line 7 of Algorithm 3), on the device, without
    a sync.

    Args:
        rule: the meta rule.
        beta: β, one entry a block.
        z: meta-gradient, one entry a block.
        state: the meta rule's state; what has β's shape is kept block by block, anything else as a whole.
        step: meta steps taken so far, one entry a block; of weight blocks one entry, which counts every step.
        skipped: 0-dim int64 counter of steps in which some block was skipped.
        meta_lr: η.
        bounds: least and greatest β, or None.
    """
    t = step + 1
    d, new_state = direction(rule, z, tuple(state), t, beta, None)
    new_beta = beta - meta_lr * d
    ok = usable(z, new_beta, new_state)
    if bounds is not None:
        new_beta = new_beta.clamp(*bounds)
    beta.copy_(torch.where(ok, new_beta, beta))
    for old, new in zip(state, new_state, strict=True):
        old.copy_(torch.where(ok if new.shape == ok.shape else ok.all(), new, old))
    count_steps(step, skipped, ok)


def count_steps(step: Tensor, skipped: Tensor, ok: Tensor) -> None:
    """Count the meta step of every block that took it, and the step as skipped where some did not."""
    step.add_(ok if step.shape == ok.shape else 1)
    skipped.add_(~ok.all())


def usable(z: Tensor, new_beta: Tensor, new_state: State) -> Tensor:
    """For each block, whether z and everything computed from it is finite."""
    ok = torch.isfinite(z) & torch.isfinite(new_beta)
    for new in new_state:
        finite = torch.isfinite(new)
        ok = ok & (finite if new.shape == ok.shape else finite.all())
    return ok
