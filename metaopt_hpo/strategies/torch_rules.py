"""Base rules that compute what `torch.optim`'s optimizers compute, where the paper's rules differ from them.

The paper's momentum is an average and its RMSprop corrects the bias; torch's do neither. Sources: the reference loops
`_single_tensor_sgd`, `_single_tensor_rmsprop` and `_single_tensor_adam` of torch 2.6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metaopt_hpo.optim.rules import (
    Rule,
    State,
    check_eps,
    check_fraction,
    check_pair,
    resolved_eps,
    safe_sqrt,
)


@dataclass(frozen=True)
class TorchMomentum(Rule):
    """b' = μb + (1 − τ)g, at the first step b' = g; u = b', or with Nesterov's step u = g + μb'.

    Args:
        momentum: μ.
        dampening: τ.
        nesterov: whether the step looks ahead.
    """

    momentum: float = 0.9
    dampening: float = 0.0
    nesterov: bool = False
    states: ClassVar[tuple[str, ...]] = ("b",)
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fraction("momentum", self.momentum)

    def update(self, g: Tensor, state: State, t: Tensor | float) -> tuple[Tensor, State]:
        # a first step is not dampened
        fresh = 1 - self.dampening + self.dampening * (t <= 1) if self.dampening else 1.0
        b = self.momentum * state[0] + fresh * g
        return (g + self.momentum * b if self.nesterov else b), (b,)


@dataclass(frozen=True)
class TorchRMSprop(Rule):
    """v' = αv + (1−α)g², r = g / (√(v' − a'²) + ε), b' = μb + r, u = b'; a' = αa + (1−α)g where `centered`, else 0.

    Args:
        alpha: decay of the averages.
        momentum: μ.
        centered: subtract the squared mean gradient.
    """

    alpha: float = 0.99
    eps: float | None = None
    momentum: float = 0.0
    centered: bool = False
    states: ClassVar[tuple[str, ...]] = ("v", "a", "b")
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fraction("alpha", self.alpha)
        check_fraction("momentum", self.momentum)
        check_eps(self.eps)

    def update(self, g: Tensor, state: State, t: Tensor | float) -> tuple[Tensor, State]:
        v = self.alpha * state[0] + (1 - self.alpha) * g * g
        a = self.alpha * state[1] + (1 - self.alpha) * g if self.centered else state[1]
        spread = v - a * a if self.centered else v
        r = g / (safe_sqrt(spread) + resolved_eps(self.eps))
        b = self.momentum * state[2] + r
        return b, (v, a, b if self.momentum else state[2])


@dataclass(frozen=True)
class AMSGrad(Rule):
    """Adam with the largest v so far: u = (m'/(1−ρᵗ)) / (√(max(v', v̂)/(1−λᵗ)) + ε) (Reddi et al. 2018)."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float | None = None
    states: ClassVar[tuple[str, ...]] = ("m", "v", "largest")
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_pair("betas", self.betas)
        check_eps(self.eps)

    def update(self, g: Tensor, state: State, t: Tensor | float) -> tuple[Tensor, State]:
        rho, lam = self.betas
        m = rho * state[0] + (1 - rho) * g
        v = lam * state[1] + (1 - lam) * g * g
        largest = torch.maximum(state[2], v)
        root = safe_sqrt(largest / (1 - lam**t)) + resolved_eps(self.eps)
        return (m / (1 - rho**t)) / root, (m, v, largest)
