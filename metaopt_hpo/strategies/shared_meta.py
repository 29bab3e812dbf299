"""A meta rule for several step sizes that hold together: one direction for all, and slow deviations from it.

The meta-gradient of a small block is mostly noise, and independent step sizes that follow it drift apart (layer blocks
ended 11 % above one common step size). Here all blocks move as the common one would, and each deviates at a fraction of
the speed, along an average long enough that noise cancels: a block goes its own way only on lasting evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from metaopt_hpo.optim.rules import META_EPS, Rule, State, check_fraction, check_pair, safe_sqrt


@dataclass(frozen=True)
class SharedAdam(Rule):
    """Adam on Σz for all blocks, plus `speed` times what Adam on each block's z deviates from the blocks' mean.

    With one block, or at speed 0, it is Adam on Σz.

    Args:
        betas: of the common direction.
        memory: both coefficients of the deviations; 0.95 leaves a sixth of independent noise.
        speed: of the deviations, in proportion to the common one; 0.3 from `python -m studies.one_run.speeds`.
    """

    betas: tuple[float, float] = (0.5, 0.95)
    memory: float = 0.95
    speed: float = 0.3
    eps: float = META_EPS
    states: ClassVar[tuple[str, ...]] = ("m", "v", "own_m", "own_v")

    def __post_init__(self) -> None:
        check_pair("betas", self.betas)
        check_fraction("memory", self.memory)

    def update(self, g: Tensor, state: State, t: Tensor | float) -> tuple[Tensor, State]:
        m, v, own_m, own_v = state
        total = g.sum().expand_as(g)
        common, m, v = _adam(total, m, v, t, self.betas, self.eps)
        own, own_m, own_v = _adam(g, own_m, own_v, t, (self.memory, self.memory), self.eps)
        return common + self.speed * (own - own.mean()), (m, v, own_m, own_v)


def _adam(
    g: Tensor, m: Tensor, v: Tensor, t: Tensor | float, betas: tuple[float, float], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    rho, lam = betas
    m = rho * m + (1 - rho) * g
    v = lam * v + (1 - lam) * g * g
    return (m / (1 - rho**t)) / (safe_sqrt(v / (1 - lam**t)) + eps), m, v
