"""What MetaOptimize was made with and keeps for good, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from metaopt_hpo.optim.arguments import bounds_of
from metaopt_hpo.optim.blocks import BlockSpec
from metaopt_hpo.optim.kernels.choose import CHOICES
from metaopt_hpo.optim.rules import Rule
from metaopt_hpo.optim.traces import HESSIAN_FREE, TRACES


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Arguments of MetaOptimize, which explains them.

    Attributes:
        lr: the initial step size α₀.
        base: rule of the weights.
        meta: rule of β.
        gamma: γ, discount of the trace.
        blocks: which weights share a step size.
        trace: how the influence of past step sizes is followed.
        bounds: least and greatest β, or None.
        max_grad_norm: greatest norm of all gradients, or None.
        compile: which kernel runs the step.
        trace_dtype: dtype of h for all but float64 weights, or None.
        stochastic: whether bfloat16 weights are rounded at random in proportion.
    """

    lr: float
    base: Rule
    meta: Rule
    gamma: float
    blocks: BlockSpec
    trace: str
    bounds: tuple[float, float] | None
    max_grad_norm: float | None
    compile: str
    trace_dtype: torch.dtype | None
    stochastic: bool

    def __post_init__(self) -> None:
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(
                f"lr={self.lr!r} is not allowed: it must be a positive finite number, for β₀ = ln lr"
            )
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"gamma={self.gamma!r} is not allowed: it must lie in [0, 1]")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(
                f"max_grad_norm={self.max_grad_norm!r} is not allowed: it must be positive, or None"
            )
        if self.trace not in TRACES:
            raise ValueError(f"trace={self.trace!r} is not known: use one of {', '.join(TRACES)}")
        if self.compile not in CHOICES:
            raise ValueError(f"compile={self.compile!r} is not known: use one of {', '.join(CHOICES)}")
        short, exact = self.trace_dtype, self.trace != HESSIAN_FREE
        if short not in (None, torch.bfloat16) or (short and exact):
            raise ValueError(
                f"trace_dtype={short!r} is not allowed: use None, or torch.bfloat16 with trace='hessian_free'"
            )
        if self.stochastic and exact:
            raise ValueError(
                f"stochastic_rounding is not supported with trace={self.trace!r}: use 'hessian_free'"
            )
        object.__setattr__(self, "bounds", bounds_of(self.bounds, self.blocks, math.log(self.lr)))

    @property
    def rules_name(self) -> str:
        """The names of the rules, to know whose state a saved one is."""
        return f"{type(self.base).__name__} / {type(self.meta).__name__} / {self.trace}"
