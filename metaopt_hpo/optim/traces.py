"""Eligibility traces with Hessian-vector products, by automatic differentiation, for any pair of rules.

A trace holds how past step sizes shaped today's state. With s = (β, meta state, w, base state), one step is a
map s' = F(s), and the trace T = ds/dβ follows it by one Jacobian-vector product a column:

    T'_k = DF(s) · (γ T_k + (1 − γ) e_k),      e_k the unit vector of β's entry k.

Inside F, h enters z = hᵀg(w) as a constant and g(w) is differentiated, which takes one Hessian-vector product
q_k = ∇²f T^w_k a column. What the approximations keep:

- ``2x2``: all of the above.
- ``l``: the rows of β and of the meta state are not followed; Y = I.
- ``exact``: F also depends on h, and h is itself a trace; Q = dT/dβ is followed by second derivatives of F
  (third ones of the loss), n·m·m numbers, so small problems only. Its own derivative is not followed (each
  order would need the next), which leaves an error of order η² in T, where 2x2 has one of order η.

No rule is derived by hand; the paper's closed forms are the tests. Source: arXiv 2402.02342, sections on G_t
and its approximations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vmap

from metaopt_hpo.optim.meta import usable
from metaopt_hpo.optim.rules import Rule, direction

HESSIAN_FREE = "hessian_free"
"""The trace without a Hessian (Algorithm 3), one float a parameter, which the kernels follow."""
HESSIAN_TRACES = ("l", "2x2", "exact")
TRACES = (HESSIAN_FREE, *HESSIAN_TRACES)
"""What ``trace`` may be."""
LIMITS = {"l": 2**28, "2x2": 2**28, "exact": 2**22}
"""Greatest number of entries of a trace: n·m, for ``exact`` n·m·m."""


def check_size(kind: str, n: int, m: int) -> None:
    """Raise ``ValueError`` where a trace of n weights and m blocks would be too large."""
    size, limit = n * m * (m if kind == "exact" else 1), LIMITS[kind]
    if size > limit:
        product = f"{n} weights × {m} blocks" + (f" × {m}" if kind == "exact" else "")
        raise ValueError(
            f"trace={kind!r} would keep {product} = {size} numbers, more than {limit}: use coarser blocks, or "
            f"trace={HESSIAN_FREE!r}"
        )


Tensors = tuple[Tensor, ...]


@dataclass
class JointState:
    """s, or one column of its trace, or all columns with a leading dimension: tensors of one meaning in one
    order.

    Attributes:
        beta: β, (m,).
        meta: the meta rule's state, each (m,).
        weights: the weights, one tensor a parameter.
        base: for each parameter the state of its base rule.
    """

    beta: Tensor
    meta: Tensors
    weights: Tensors
    base: tuple[Tensors, ...]

    def flatten(self) -> Tensors:
        return (self.beta, *self.meta, *self.weights, *(x for row in self.base for x in row))

    def like(self, flat: Sequence[Tensor]) -> JointState:
        """The tensors of ``flat`` in this state's structure."""
        m, n = len(self.meta), len(self.weights)
        rest = iter(flat[1 + m + n :])
        rows = tuple(tuple(next(rest) for _ in row) for row in self.base)
        return JointState(flat[0], tuple(flat[1 : 1 + m]), tuple(flat[1 + m : 1 + m + n]), rows)

    def map(self, function: Callable[[Tensor], Tensor]) -> JointState:
        return self.like([function(x) for x in self.flatten()])


@dataclass(frozen=True, kw_only=True)
class JointMap:
    """One step of base and meta rule together, as a pure function of s, of the gradients and of h.

    Attributes:
        base: each parameter's base rule.
        names: their names, or None.
        meta: the meta rule.
        blocks: each parameter's block, or with ``per_weight`` the offset of its first weight in β.
        per_weight: whether every weight has a step size of its own.
        ratios, decays, steps: each parameter's lr_group / lr, κ and number of this step.
        meta_steps: number of this meta step for each block.
        meta_lr: η.
        bounds: of β, or None.
    """

    base: tuple[Rule, ...]
    names: tuple[str | None, ...]
    meta: Rule
    blocks: tuple[int, ...]
    per_weight: bool
    ratios: tuple[float, ...]
    decays: tuple[float, ...]
    steps: tuple[float, ...]
    meta_steps: Tensor
    meta_lr: float
    bounds: tuple[float, float] | None

    def __call__(self, s: JointState, grads: Tensors, h: Tensors) -> JointState:
        """s' from s; h has m rows a parameter. A block that cannot be used keeps its β and meta state."""
        weights, rows = self._weights(s, grads)
        z = sum_products(h, grads)
        d, new_meta = direction(self.meta, z, s.meta, self.meta_steps, s.beta, None)
        new_beta = s.beta - self.meta_lr * d
        ok = usable(z, new_beta, new_meta)
        if self.bounds is not None:
            new_beta = new_beta.clamp(*self.bounds)
        beta = torch.where(ok, new_beta, s.beta)
        meta = tuple(
            torch.where(ok if new.shape == ok.shape else ok.all(), new, old)
            for new, old in zip(new_meta, s.meta, strict=True)
        )
        return JointState(beta, meta, weights, rows)

    def _weights(self, s: JointState, grads: Tensors) -> tuple[Tensors, tuple[Tensors, ...]]:
        alpha = s.beta.exp()
        weights: list[Tensor] = []
        rows: list[Tensors] = []
        for i, (w, g) in enumerate(zip(s.weights, grads, strict=True)):
            start = self.blocks[i]
            a = alpha[start : start + w.numel()].view(w.shape) if self.per_weight else alpha[start]
            u, new = direction(self.base[i], g, s.base[i], self.steps[i], w, self.names[i])
            weights.append(w - (a * self.ratios[i]).to(w.dtype) * (u + self.decays[i] * w))
            rows.append(new)
        return tuple(weights), tuple(rows)


def sum_products(h: Tensors, grads: Tensors) -> Tensor:
    """z = Hᵀg over all weights, (m,); h has a leading dimension of m."""
    parts = [x.reshape(x.shape[0], -1) @ g.reshape(-1) for x, g in zip(h, grads, strict=True)]
    return torch.stack(parts).sum(0)


def units(m: int, like: JointState, gamma: float, trace: JointState) -> JointState:
    """The columns' directions γT + (1 − γ)E, E the identity in the rows of β."""
    scaled = trace.map(lambda x: gamma * x)
    eye = torch.eye(m, dtype=like.beta.dtype, device=like.beta.device)
    return JointState(scaled.beta + (1 - gamma) * eye, scaled.meta, scaled.weights, scaled.base)


def advance(
    kind: str,
    step: JointMap,
    s: JointState,
    grads: Tensors,
    trace: JointState,
    second: JointState | None,
    gamma: float,
    hvp: Callable[[Tensors], Tensors],
    third: Callable[[Tensors, Tensors], Tensors] | None,
) -> tuple[JointState, JointState, JointState | None]:
    """One step of s and of its trace.

    Args:
        kind: "l", "2x2" or "exact".
        step: the joint map.
        s: the state before the step.
        grads: g(w).
        trace: T, every tensor with a leading dimension of m columns.
        second: Q for "exact", two leading dimensions: which column of T, and the derivative in which direction.
        gamma: γ.
        hvp: v ↦ ∇²f v, for one direction v (one tensor a parameter).
        third: (u, v) ↦ ∇³f[u, v], for "exact".

    Returns:
        (s', T', Q').
    """
    m = s.beta.numel()
    along = units(m, s, gamma, trace)
    if kind == "l":
        eye = torch.eye(m, dtype=s.beta.dtype, device=s.beta.device)
        along = JointState(eye, tuple(torch.zeros_like(x) for x in along.meta), along.weights, along.base)
    h = trace.weights
    columns = [_column(along, k).weights for k in range(m)]
    if needs_hessian(kind, step):
        products = [hvp(v) for v in columns]
        curvature = tuple(torch.stack([q[i] for q in products]) for i in range(len(grads)))
    else:
        curvature = tuple(torch.zeros_like(x) for x in along.weights)
    if kind == "exact":
        if second is None or third is None:
            raise ValueError("the exact trace needs second-order traces and third derivatives")
        return _advance_exact(step, s, grads, trace, second, gamma, along, curvature, hvp, third)

    def moved(*flat: Tensor) -> Tensors:
        count = len(s.flatten())
        return step(s.like(flat[:count]), tuple(flat[count:]), h).flatten()

    primals = (*s.flatten(), *grads)
    if m == 1:  # a plain product: vmap's overhead is a good part of a small model's step
        first = tuple(x[0] for x in (*along.flatten(), *curvature))
        out = jvp(moved, primals, first)
        new, new_trace = s.like(out[0]), s.like([x[None] for x in out[1]])
    else:
        new = s.like(moved(*primals))
        rows = vmap(lambda *tangents: jvp(moved, primals, tangents)[1])(*along.flatten(), *curvature)
        new_trace = s.like(rows)
    if kind == "l":
        new_trace = JointState(along.beta, along.meta, new_trace.weights, new_trace.base)
    return new, new_trace, None


def needs_hessian(kind: str, step: JointMap) -> bool:
    """Whether any row of the trace depends on ∇²f: not where only signs of averages move the weights."""
    base_needs = any(rule.uses_magnitude for rule in step.base)
    return base_needs or (kind != "l" and step.meta.uses_magnitude)


def _column(columns: JointState, k: int) -> JointState:
    return columns.map(lambda x: x[k])


def _advance_exact(
    step: JointMap,
    s: JointState,
    grads: Tensors,
    trace: JointState,
    second: JointState,
    gamma: float,
    along: JointState,
    curvature: Tensors,
    hvp: Callable[[Tensors], Tensors],
    third: Callable[[Tensors, Tensors], Tensors],
) -> tuple[JointState, JointState, JointState]:
    """T' and Q' by first and second directional derivatives of the map (s, g, h) ↦ s'."""
    m, count, n = s.beta.numel(), len(s.flatten()), len(grads)

    def moved(*flat: Tensor) -> Tensors:
        return step(s.like(flat[:count]), tuple(flat[count : count + n]), tuple(flat[count + n :])).flatten()

    h = trace.weights
    primals = (*s.flatten(), *grads, *h)
    # Direction k: s along its trace, g along its curvature, and h (all its columns) along Q.
    tangents = []
    for k in range(m):
        dh = tuple(gamma * x[:, k] for x in second.weights)
        tangents.append((*_column(along, k).flatten(), *(q[k] for q in curvature), *dh))
    first = [jvp(moved, primals, t)[1] for t in tangents]
    rows: list[list[Tensors]] = []
    for j in range(m):
        row = []
        for k in range(m):
            q = second.map(lambda x, j=j, k=k: gamma * x[j, k])  # type: ignore[misc]
            bend = third(_column(along, j).weights, _column(along, k).weights)
            push = hvp(q.weights)
            change = (
                *q.flatten(),
                *(a + b for a, b in zip(bend, push, strict=True)),
                *map(torch.zeros_like, h),
            )
            row.append(_second(moved, primals, tangents[j], tangents[k], change))
        rows.append(row)
    new_trace = s.like([torch.stack([t[i] for t in first]) for i in range(count)])
    new_second = s.like(
        [torch.stack([torch.stack([t[i] for t in row]) for row in rows]) for i in range(count)]
    )
    return s.like(moved(*primals)), new_trace, new_second


def _second(function: Any, primals: Tensors, first: Tensors, along: Tensors, change: Tensors) -> Tensors:
    """Derivative of DF(x)·first along ``along`` in x and ``change`` in first."""
    size = len(primals)

    def inner(*flat: Tensor) -> Tensors:
        result: Tensors = jvp(function, tuple(flat[:size]), tuple(flat[size:]))[1]
        return result

    result: Tensors = jvp(inner, (*primals, *first), (*along, *change))[1]
    return result
