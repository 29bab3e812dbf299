"""Muon as a base rule: orthogonalised momentum for hidden matrices, AdamW for embeddings, head and vectors.

Sources: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks" (momentum, Newton–Schulz
iteration and its coefficients); Liu et al. 2025, "Muon is scalable for LLM training" (arXiv 2502.16982, the factor
that gives an update the size of AdamW's, so that one step size serves both).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metaopt_hpo.optim.rules import (
    BASE_RULES,
    AdamW,
    Rule,
    State,
    check_eps,
    check_fraction,
    check_pair,
)

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: the steepest at 0 that keeps singular values near 1."""
ADJUSTMENTS = ("match_rms_adamw", "original")
NOT_HIDDEN = frozenset(
    ("embed", "embedding", "embeddings", "embd", "emb", "wte", "wpe", "tok", "token", "tokens", "pos", "position",
     "positions", "shared", "unembed", "head", "classifier", "score", "logits")
)  # fmt: skip
"""Words of a parameter's name that mark embeddings and heads."""


def is_hidden_matrix(name: str | None, param: Tensor) -> bool:
    """Whether a parameter is a hidden layer's matrix: two or more dimensions, and no embedding or head by its name.

    Raises:
        ValueError: a matrix without a name, of which this cannot be said.
    """
    if param.ndim < 2:
        return False
    if name is None:
        raise ValueError(
            "base='muon' needs parameter names, to tell hidden matrices from embeddings and heads: pass "
            "model.named_parameters(), or Muon(hidden=...) with a function that needs none"
        )
    return NOT_HIDDEN.isdisjoint(re.split(r"[._]", name.lower()))


def orthogonalise(x: Tensor, steps: int) -> Tensor:
    """The nearest matrix to x with singular values near 1, by Newton–Schulz iterations; in bfloat16, but for
    float64."""
    a, b, c = COEFFICIENTS
    y = x.flatten(1)
    tall = y.shape[0] > y.shape[1]
    y = (y.T if tall else y).to(y.dtype if y.dtype == torch.float64 else torch.bfloat16)
    y = y / y.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = y @ y.T
        y = torch.addmm(y, torch.addmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    out: Tensor = (y.T if tall else y).to(x.dtype).reshape(x.shape)
    return out


@dataclass(frozen=True)
class MuonMatrix(Rule):
    """m' = ρm + (1−ρ)g, u = s · orthogonalised(m'), with Nesterov of (1−ρ)g + ρm'; s is the shape's factor.

    For an n × k matrix (a convolution's with its later dimensions joined) s is 0.2 √max(n, k) under
    "match_rms_adamw" and √max(1, n / k) under "original".

    Examples:
        >>> from metaopt_hpo.optim import MuonMatrix
        >>> MuonMatrix(momentum=0.9).ns_steps
        5
    """

    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    adjust: str = ADJUSTMENTS[0]
    states: ClassVar[tuple[str, ...]] = ("m",)

    def __post_init__(self) -> None:
        _check(self.momentum, self.ns_steps, self.adjust)

    def update(self, g: Tensor, state: State, t: Tensor | float) -> tuple[Tensor, State]:
        m = torch.lerp(state[0], g, 1 - self.momentum)
        x = torch.lerp(g, m, self.momentum) if self.nesterov else m
        n, k = g.shape[0], g[0].numel()
        factor = 0.2 * max(n, k) ** 0.5 if self.adjust == ADJUSTMENTS[0] else max(1.0, n / k) ** 0.5
        return factor * orthogonalise(x, self.ns_steps), (m,)


@dataclass(frozen=True)
class Muon(Rule):
    """Muon for hidden matrices and AdamW for everything else: :class:`MuonMatrix` where ``hidden`` says so.

    One β for both (``blocks="scalar"``) suits ``adjust="match_rms_adamw"``, under which both kinds of update are
    equally large; ``blocks="rule"`` gives each its own, ``blocks="group"`` every parameter group.

    Args:
        momentum, nesterov, ns_steps, adjust: of the matrices.
        betas, eps: of AdamW.
        hidden: from a parameter's name (or None) and the parameter, whether Muon advances it.

    Examples:
        >>> import torch
        >>> from metaopt_hpo.optim import MetaOptimize, Muon
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
        >>> optimizer = MetaOptimize(model.named_parameters(), lr=1e-3, base=Muon())
    """

    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    adjust: str = ADJUSTMENTS[0]
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float | None = None
    hidden: Callable[[str | None, Tensor], bool] = is_hidden_matrix

    def __post_init__(self) -> None:
        _check(self.momentum, self.ns_steps, self.adjust)
        check_pair("betas", self.betas)
        check_eps(self.eps)

    def for_parameter(self, name: str | None, param: Tensor) -> Rule:
        if not self.hidden(name, param):
            return AdamW(self.betas, self.eps)
        return MuonMatrix(self.momentum, self.nesterov, self.ns_steps, self.adjust)

    def update(self, g: Tensor, state: State, t: Tensor | float) -> tuple[Tensor, State]:
        raise TypeError("Muon is made of two rules: ask for_parameter for the one that advances a parameter")


def _check(momentum: float, ns_steps: int, adjust: str) -> None:
    check_fraction("momentum", momentum)
    if not ns_steps >= 1:
        raise ValueError(f"ns_steps={ns_steps!r} is not allowed: it must be at least 1")
    if adjust not in ADJUSTMENTS:
        raise ValueError(f"adjust={adjust!r} is not known: use one of {', '.join(ADJUSTMENTS)}")


BASE_RULES["muon"] = Muon
