"""An optimizer that adapts weight decay, momentum or the clip norm by Hessian-free traces, for any rule.

A step is a map (w, state) → (w', state') that depends on a meta-parameter θ, with g held constant. The trace
T = d(w, state)/dθ follows it by one Jacobian-vector product, T' = DF·(γT) + ∂F/∂θ, so that no rule is derived by hand;
h is its part of the weights. The meta-gradient is z = h·g, and meta-Adam moves θ, as in arXiv 2402.02342 for the
logarithm of the step size. The step size itself is given from outside. Written to be read, not to be fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp
from torch.fx.experimental.proxy_tensor import make_fx

from metaopt_hpo.optim.rule import Rule, State, direction
from metaopt_hpo.optim.rules import AdamW


@dataclass(frozen=True, kw_only=True)
class MetaParameter:
    """A number of the update rule in an unconstrained form θ.

    Args:
        name: "decay", "momentum" or "clip".
        low, high: bounds of its value.
        fraction: whether θ is its logit instead of its logarithm.
    """

    name: str
    low: float
    high: float
    fraction: bool = False

    def value(self, theta: Tensor) -> Tensor:
        """Its value at θ."""
        return theta.sigmoid() if self.fraction else theta.exp()

    def theta(self, value: float) -> float:
        """θ at a value."""
        return math.log(value / (1 - value)) if self.fraction else math.log(value)


KINDS = {
    p.name: p
    for p in (
        MetaParameter(name="decay", low=1e-4, high=10.0),
        MetaParameter(name="momentum", low=0.2, high=0.995, fraction=True),
        MetaParameter(name="clip", low=1e-3, high=1e3),
    )
}
"""Momentum at 0.995 remembers 200 steps, a tenth of the study's runs."""


def with_momentum(rule: Rule, momentum: Tensor | float) -> Rule:
    """The rule with this momentum; a tensor is differentiated through.

    Raises:
        ValueError: a rule without one, or Lion, whose sign leaves it no derivative.
    """
    if not rule.uses_magnitude or not ({"betas", "momentum"} & set(vars(rule))):
        raise ValueError(f"the momentum of {type(rule).__name__} cannot be traced")
    own = copy(rule)  # not `replace`, whose check would look at a number that is being differentiated
    field, value = ("betas", (momentum, rule.betas[1])) if hasattr(rule, "betas") else ("momentum", momentum)
    object.__setattr__(own, field, value)
    return own


@dataclass
class _Piece:
    """Parameters that advance together: all of them under an elementwise rule, else one."""

    params: list[Tensor]
    decayed: Tensor
    rule: Rule
    name: str | None
    state: State
    trace: list[tuple[Tensor, ...]]
    """For each adapted θ the derivative of the weights, then of the state."""

    product: Callable[..., Any] | None = None

    def joined(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([x.reshape(-1) for x in tensors]) if len(tensors) > 1 else tensors[0]


class TracedOptimizer:
    """w' = w − α(u + κw), u of a rule from clipped gradients, with some of κ, momentum and clip norm adapted.

    Args:
        groups: of `strategies.groups.decay_groups`; κ acts on those whose own is not 0.
        rule: the base rule.
        values: start of "decay", "clip" (infinite clips nothing) and, unless it is the rule's own, "momentum".
        adapt: which of them are adapted.
        meta_lr: η of θ.
        gamma: γ of the trace.
        meta: the meta rule.
    """

    def __init__(
        self,
        groups: Iterable[Mapping[str, Any]],
        rule: Rule,
        values: Mapping[str, float],
        *,
        adapt: Sequence[str] = (),
        meta_lr: float = 0.0,
        gamma: float = 1.0,
        meta: Rule | None = None,
    ) -> None:
        named = [(*_named(p), float(g["weight_decay"] > 0)) for g in groups for p in g["params"]]
        self.rule, self.fixed = rule.as_base(), dict(values)
        self.kinds = tuple(KINDS[name] for name in adapt)
        self.meta_lr, self.gamma, self.steps = meta_lr, gamma, 0
        self.meta = (AdamW(betas=(0.5, 0.95)) if meta is None else meta).as_meta()
        like = named[0][1].detach()
        self.theta = like.new_tensor([k.theta(values[k.name]) for k in self.kinds])
        self._low, self._high = (
            like.new_tensor([k.theta(getattr(k, end)) for k in self.kinds]) for end in ("low", "high")
        )
        self.meta_state = self.meta.init_state(self.theta)
        self.meta_steps = 0
        whole = [named] if self.rule.elementwise else [[one] for one in named]
        self.pieces = [self._piece(part) for part in whole]

    def _piece(self, part: list[tuple[str | None, Tensor, float]]) -> _Piece:
        name, first, _ = part[0]
        params = [p for _, p, _ in part]
        rule = self.rule if len(part) > 1 else self.rule.for_parameter(name, first)
        piece = _Piece(params, torch.empty(0), rule, name, (), [])
        piece.decayed = piece.joined([torch.full_like(p.detach(), d) for _, p, d in part])
        piece.state = rule.init_state(piece.decayed)
        zeros = (torch.zeros_like(piece.decayed), *map(torch.zeros_like, piece.state))
        piece.trace = [zeros for _ in self.kinds]
        return piece

    def values(self) -> dict[str, float]:
        """Decay, momentum and clip norm in force."""
        return self.fixed | {k.name: float(k.value(t)) for k, t in zip(self.kinds, self.theta, strict=True)}

    @torch.no_grad()
    def step(self, alpha: float, *, adapt: bool = True, against: Sequence[Tensor] | None = None) -> None:
        """One step from the parameters' gradients, which are set to None.

        Args:
            alpha: the step size.
            adapt: whether θ moves; its trace is followed in any case.
            against: gradients of another loss, in the parameters' order, for z; None takes those of this step, clipped.
        """
        self.steps += 1
        grads = [[p.grad for p in piece.params] for piece in self.pieces]
        joined = [piece.joined(g) for piece, g in zip(self.pieces, grads, strict=True)]  # type: ignore[arg-type]
        norm = torch.stack([g.norm() for g in joined]).norm()
        z = self._meta_gradient(joined, norm, against)
        for piece, g in zip(self.pieces, joined, strict=True):
            self._advance(piece, g, norm, alpha)
        if adapt and self.kinds:
            self._adapt(z)

    def _meta_gradient(self, joined: list[Tensor], norm: Tensor, against: Sequence[Tensor] | None) -> Tensor:
        """z from the traces before the step."""
        factor = self._clipped(1.0, norm, self._numbers(self.theta)) if against is None else 1.0
        if against is not None:
            rest = iter(against)
            joined = [piece.joined([next(rest) for _ in piece.params]) for piece in self.pieces]
        z = torch.zeros_like(self.theta)
        for k in range(len(self.kinds)):
            z[k] = factor * sum((p.trace[k][0] * g).sum() for p, g in zip(self.pieces, joined, strict=True))
        return z

    def _adapt(self, z: Tensor) -> None:
        if not bool(torch.isfinite(z).all()):
            return
        self.meta_steps += 1
        d, self.meta_state = direction(
            self.meta, z, self.meta_state, float(self.meta_steps), self.theta, None
        )
        self.theta = (self.theta - self.meta_lr * d).clamp(self._low, self._high)

    def _numbers(self, theta: Tensor) -> dict[str, Any]:
        return self.fixed | {k.name: k.value(theta[i]) for i, k in enumerate(self.kinds)}

    def _clipped(self, g: Any, norm: Tensor, numbers: Mapping[str, Any]) -> Any:
        return g * (numbers["clip"] / (norm + 1e-6)).clamp(max=1.0)

    def _moved(
        self, piece: _Piece, given: tuple[Tensor, ...], theta: Tensor, w: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        """The step: weights and state after it."""
        (g, norm, alpha, t), numbers, own = given, self._numbers(theta), piece.rule
        if "momentum" in numbers:
            own = with_momentum(own, numbers["momentum"])
        u, new = direction(own, self._clipped(g, norm, numbers), state, t, w, piece.name)
        return (w - alpha * (u + numbers["decay"] * piece.decayed * w), *new)

    def _product(
        self, piece: _Piece, given: tuple[Tensor, ...], primals: tuple[Tensor, ...], along: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The step and its derivative along a direction."""
        return jvp(partial(self._moved, piece, given), primals, along)  # type: ignore[return-value]

    def _advance(self, piece: _Piece, g: Tensor, norm: Tensor, alpha: float) -> None:
        given = (g, norm, *self.theta.new_tensor([alpha, self.steps]).unbind())
        primals = (self.theta, piece.joined([p.detach() for p in piece.params]), *piece.state)
        for k, one in enumerate(torch.eye(len(self.kinds)).to(self.theta)):
            along = (one, *(self.gamma * x for x in piece.trace[k]))
            if piece.product is None:
                piece.product = _recorded(partial(self._product, piece), given, primals, along)
            found, piece.trace[k] = piece.product(given, primals, along)
        w, *state = found if self.kinds else self._moved(piece, given, *primals)
        piece.state = tuple(state)
        parts = w.split([p.numel() for p in piece.params]) if len(piece.params) > 1 else [w]
        for p, new in zip(piece.params, parts, strict=True):
            p.copy_(new.view_as(p))
            p.grad = None


def _recorded(function: Callable[..., Any], *inputs: tuple[Tensor, ...]) -> Callable[..., Any]:
    """The function as the list of its tensor operations, a fifth of the time of `jvp` where tensors are small."""
    recorded = make_fx(function)(*inputs)
    for node in reversed(recorded.graph.nodes):
        if node.target is torch.ops.aten._efficientzerotensor.default:
            node.target = torch.ops.aten.zeros.default  # the other kind works out shapes in Python
        if node.op == "call_function" and not node.users:
            recorded.graph.erase_node(node)
    recorded.recompile()
    return recorded


def _named(p: Any) -> tuple[str | None, Tensor]:
    return (p[0], p[1]) if isinstance(p, tuple) else (None, p)
