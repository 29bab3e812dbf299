"""The balance of noise and progress at a fixed step size, measured in a run, and the step size that it asks for.

At a step size α the weights jitter around the path that they follow. The jitter adds H(α) to the loss, in proportion
to α, and a cooldown removes most of it; the path itself falls by S for every e-fold of the steps taken. A run that
ends in a cooldown wants H in a fixed proportion to S: with too small an α it is slow for nothing, with too large a one
it pays for noise that the cooldown no longer takes back. Both are cheap to measure:

- 2H is g·(w − w_a) for an anchor w_a a few dozen steps back: the two jitters are independent by then, and the gradient
  sees the difference. The optimizer's trace h, set to zero at the anchor, is w − w_a.
- S is the fall of the mean loss between two parts of the run, each less its own H.

A run that holds a law's rate measures both and moves it as far as the measurement is surer than the law. A second
measurement later in the run was tried and is too noisy: on a transformer it moved a good step size by 1.4.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim import host
from metaopt_hpo.optim.sharding import ShardKey, like_shards, local, reduce_sums, shard_key
from metaopt_hpo.strategies.kinds import FORGOTTEN
from metaopt_hpo.strategies.processes import mean_over_processes

ANCHOR = 40
"""Steps between anchors, at least: the jitter is forgotten after ten to thirty, and the path has hardly moved. Under a
rule of a longer momentum it lasts longer (`kinds.FORGOTTEN` memories): over 40 steps of Lion, whose momentum lasts a
hundred, the noise comes out too small and the factor too large."""

PROPORTION = 1.3
"""S / 2H at the best peak rate, S from an eighth to a quarter of the run: the geometric mean of eight jobs that no
other study has (`python -m studies.one_run.corrections`, last column: what is measured at the best rate)."""

LEARNED_AT = 2000
"""Steps of the runs on which `PROPORTION` was learned; at 8,000 it is the same."""

RULE_SPREAD = 0.35
"""Standard deviation of the logarithm of `PROPORTION` over those jobs: it is no more the same for all than the best
rate over the adapted one is, so that a run without a law gains nothing by measuring."""

UNLEARNED = 0.7
"""What is added to it (in squares) for every e-fold by which a run is shorter than `LEARNED_AT`. Such a run is still on
the steep part of its curve, and how little it has fallen early says nothing of what a larger step size brings later.
Chosen on text-lm at 512 and 1,024 steps."""

INTERPOLATING = 0.05
"""Below this fraction of the first loss the training data are being learned by heart, and S says nothing of use."""

LEAST = 12
"""Losses and products that a mean needs."""


def trace_product(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Σ h·g over all parameters with a gradient, summed over shards; None where the optimizer keeps no trace `h`."""
    parts: dict[ShardKey, Tensor] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            h = optimizer.state[p].get("h") if p in optimizer.state else None
            if h is None or p.grad is None:
                continue
            g = local(like_shards(p.grad, p)).reshape(-1)
            h = local(h).reshape(-1)
            product = torch.dot(g.to(torch.float32), h.to(torch.float32)).double()
            key = shard_key(p)
            parts[key] = product if key not in parts else parts[key] + product.to(parts[key].device)
    if not parts:
        return None
    return reduce_sums(parts, next(iter(parts.values())))


@torch.no_grad()
def set_anchor(optimizer: torch.optim.Optimizer) -> None:
    """Count the trace from the weights as they are."""
    for state in optimizer.state.values():
        if "h" in state:
            state["h"].zero_()


class Balance:
    """Means of the loss in an early and a late part of a run, and of g·(w − w_a) in the late one.

    Numbers stay on the device until `factor` is asked for, once a run.

    Args:
        early, late: first step and end of each part; the late one's step size is fixed.
        proportion: S / 2H that is wanted.
        spread: standard deviation of its logarithm.
        anchor: steps between anchors.
    """

    def __init__(
        self,
        early: tuple[int, int],
        late: tuple[int, int],
        proportion: float,
        spread: float = RULE_SPREAD,
        anchor: int = ANCHOR,
    ) -> None:
        self._early, self._late, self._proportion, self._spread = early, late, proportion, spread
        self._anchor = anchor
        self._sums: Tensor | None = None
        """First loss; count, ln step, ln α, loss and loss² of the early part; the same of the late part;
        count, value and square of 2H."""

    def anchors(self, step: int) -> bool:
        """Whether the trace is to be counted from this step on."""
        return self._late[0] <= step < self._late[1] and (step - self._late[0]) % self._stride == 0

    def wants_product(self, step: int) -> bool:
        """Whether `see` is to be given g·(w − w_a) for this step: in the second half after each anchor."""
        if not self._late[0] <= step < self._late[1]:
            return False
        return (step - self._late[0]) % self._stride >= self._stride // 2

    @property
    def _stride(self) -> int:
        return max(2, min(self._anchor, self._late[1] - self._late[0]))

    def see(self, step: int, loss: Tensor | None, alpha: Tensor, product: Tensor | None) -> None:
        """Take in one step.

        Args:
            step: its number, from 0.
            loss: its training loss, before the update.
            alpha: the step size in force (ramps included), a 0-d tensor.
            product: g·(w − w_a), unclipped, where `wants_product` asked for it.
        """
        in_early = self._early[0] <= step < self._early[1]
        # the first steps after the step size changed are left out
        in_late = self._late[0] + self._stride // 2 <= step < self._late[1]
        if loss is None or not (step == 0 or in_early or in_late):
            return
        y = loss.detach().double().reshape(())
        zero, one, x = y * 0, y * 0 + 1, y * 0 + math.log(step + 1)
        row = torch.stack([one, x, alpha.to(y).log(), y, y * y])
        none = row * 0
        if product is None:
            noise = torch.stack([zero, zero, zero])
        else:
            z = product.to(y)
            noise = torch.stack([one, z, z * z])
        add = torch.cat(
            [
                (y if step == 0 else zero).reshape(1),
                row if in_early else none,
                row if in_late else none,
                noise,
            ]
        )
        self._sums = add if self._sums is None else self._sums.to(add) + add

    def done(self, step: int) -> bool:
        """Whether the late part is over."""
        return step >= self._late[1]

    def factor(self) -> tuple[float, float]:
        """What to multiply the late part's step size with, as measured, and the standard deviation of its logarithm.

        Returns:
            (1, inf) where too little was seen, where the loss does not fall, or where the training data are being
            learned by heart.
        """
        unknown = (1.0, math.inf)
        if self._sums is None:
            return unknown
        first, *rest = host.read(list(mean_over_processes(self._sums).unbind()))
        early, late, (n, z, z2) = rest[:5], rest[5:10], rest[10:]
        if min(early[0], late[0], n) < LEAST or not all(math.isfinite(v) for v in (first, *rest)):
            return unknown
        (x0, a0, y0, v0), (x1, a1, y1, v1) = _means(early), _means(late)
        noise = z / n
        if y1 < INTERPOLATING * first or noise <= 0 or x1 <= x0:
            return unknown
        span = x1 - x0
        # each part at its own step size, less the jitter of that step size: H is half of `noise` at exp(a1)
        fall = (y0 - 0.5 * noise * math.exp(a0 - a1)) - (y1 - 0.5 * noise)
        # between anchor and gradient the path has fallen too
        noise += fall / span * 0.75 * self._stride / math.exp(x1)
        error = math.hypot(v0, v1) / max(fall, 1e-300)
        if fall <= 0 or error > 0.5:
            return unknown
        spread = math.sqrt(max(z2 / n - (z / n) ** 2, 0.0) / n) / noise
        return fall / span / noise / self._proportion, math.sqrt(
            error**2 + (1.5 * spread) ** 2 + self._spread**2
        )

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far."""
        return {"sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        self._sums = state["sums"]


def _means(sums: list[float]) -> tuple[float, float, float, float]:
    """Means of ln step, ln α and loss, and the standard error of the last."""
    n, x, a, y, y2 = sums
    return x / n, a / n, y / n, math.sqrt(max(y2 / n - (y / n) ** 2, 0.0) / n)


def measurement(horizon: int, find: float, measure: float, remembers: float = 1.0) -> Balance | None:
    """The measurement of a run, or None where it has no time for one.

    Args:
        horizon: steps of the run.
        find: fraction at which the measurement begins.
        measure: fraction that it takes from there.
        remembers: steps that the base rule's momentum lasts.
    """

    def steps(first: float, end: float) -> tuple[int, int]:
        return round(first * horizon), round(end * horizon)

    spread = math.hypot(RULE_SPREAD, UNLEARNED * max(0.0, math.log(LEARNED_AT / horizon)))
    late, anchor = steps(find, find + measure), max(ANCHOR, round(FORGOTTEN * remembers))
    if anchor > max(ANCHOR, late[1] - late[0]):
        return None
    return Balance(steps(0.5 * find, 0.8 * find), late, PROPORTION, spread, anchor)


def shrunk(factor: float, spread: float, prior: float) -> float:
    """The measured factor, drawn to 1 as far as the measurement is uncertain.

    Args:
        factor: as measured.
        spread: standard deviation of its logarithm.
        prior: standard deviation of the logarithm of the right one, before anything is measured.
    """
    return float(factor ** (1 / (1 + (spread / prior) ** 2)))
