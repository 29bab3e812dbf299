"""The step with Hessian-vector products: from a closure that returns the loss to weights, β and traces one step
on.

The closure must leave the graph of the loss alone: the optimizer differentiates it, twice or more, and fills
``.grad``. Attention runs on torch's math kernels inside it, for the fused ones have no second derivative. Under
DistributedDataParallel gradients and Hessian-vector products are averaged over the processes here, for DDP's
own reduction only serves ``backward()``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

from metaopt_hpo.optim.joined import Joined
from metaopt_hpo.optim.meta import count_steps, usable
from metaopt_hpo.optim.rules import Rule, direction
from metaopt_hpo.optim.traces import JointMap, JointState, Tensors, advance, sum_products

NEEDS_CLOSURE = (
    "trace={kind!r} differentiates the gradient: call opt.step(closure) with a closure that returns the loss "
    "and does not call backward()"
)


class Graph:
    """A loss with a graph to differentiate: gradients, and Hessian-vector products with them.

    Args:
        loss: the scalar loss.
        params: all parameters; ``used`` has the indices of those the loss depends on.
        group: processes to average over, or None.
    """

    def __init__(self, loss: Tensor, params: Sequence[Tensor], group: Any) -> None:
        wanted = [i for i, p in enumerate(params) if p.requires_grad]
        raw = torch.autograd.grad(loss, [params[i] for i in wanted], create_graph=True, allow_unused=True)
        pairs = [(i, g) for i, g in zip(wanted, raw, strict=True) if g is not None]
        self.used = [i for i, _ in pairs]
        self._params = [params[i] for i in self.used]
        self._with_graph = [g for _, g in pairs]
        self._group = group
        self._factors: list[Tensor] | None = None
        self.grads: Tensors = self._mean([g.detach() for g in self._with_graph])

    def scale(self, factors: list[Tensor]) -> None:
        """Multiply what ``hvp`` and ``third`` return, one 0-dim factor a used parameter."""
        self._factors = factors

    def hvp(self, v: Tensors) -> Tensors:
        """∇²f v."""
        return self._finish(self._grad(self._with_graph, v))

    def third(self, u: Tensors, v: Tensors) -> Tensors:
        """∇³f[u, v]."""
        product = self._grad(self._with_graph, u, create_graph=True)
        return self._finish(self._grad(product, v))

    def _grad(self, of: Sequence[Tensor], v: Tensors, create_graph: bool = False) -> list[Tensor]:
        pairs = [(g, x.to(g.dtype)) for g, x in zip(of, v, strict=True) if g.requires_grad]
        if not pairs:
            return [torch.zeros_like(p) for p in self._params]
        with torch.enable_grad():
            out = torch.autograd.grad(
                [g for g, _ in pairs],
                self._params,
                [x for _, x in pairs],
                retain_graph=True,
                create_graph=create_graph,
                allow_unused=True,
            )
        return [torch.zeros_like(p) if q is None else q for p, q in zip(self._params, out, strict=True)]

    def _finish(self, products: list[Tensor]) -> Tensors:
        mean = self._mean([q.detach() for q in products])
        if self._factors is None:
            return mean
        return tuple(f * q.to(f.dtype) for f, q in zip(self._factors, mean, strict=True))

    def _mean(self, tensors: list[Tensor]) -> Tensors:
        if self._group is None or not tensors:
            return tuple(tensors)
        flat = torch.cat([x.reshape(-1) for x in tensors])
        dist.all_reduce(flat, group=self._group)
        flat /= dist.get_world_size(self._group)
        parts = flat.split([x.numel() for x in tensors])
        return tuple(part.view(x.shape).to(x.dtype) for part, x in zip(parts, tensors, strict=True))


def loss_graph(closure: Callable[[], Any] | None, params: Sequence[Tensor], kind: str) -> tuple[Any, Graph]:
    """Run the closure; its loss, and the graph to differentiate.

    Raises:
        ValueError: no closure, one that called ``backward()``, or one that returned no scalar with a graph.
    """
    if closure is None:
        raise ValueError(NEEDS_CLOSURE.format(kind=kind) + "; no closure was given")
    for p in params:
        p.grad = None
    groups: list[Any] = []
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _replicas_seen(groups):
        loss = closure()
    if any(p.grad is not None for p in params):
        for p in params:
            p.grad = None
        raise ValueError(NEEDS_CLOSURE.format(kind=kind) + "; this one did call it")
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise ValueError(
            NEEDS_CLOSURE.format(kind=kind)
            + f"; this one returned {_describe(loss)}, not a scalar with a graph"
        )
    with torch.enable_grad():
        return loss, Graph(loss.reshape(()), params, groups[0] if groups else None)


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"a tensor of shape {tuple(value.shape)}" + ("" if value.requires_grad else " without graph")


@contextmanager
def _replicas_seen(groups: list[Any]) -> Any:
    """Collect the process group of every DistributedDataParallel module that runs inside."""

    def note(module: torch.nn.Module, _: Any) -> None:
        if isinstance(module, DistributedDataParallel):
            groups.append(module.process_group)

    handle = register_module_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class Names:
    """Where a trace is kept: under ``prefix`` in the shared state and in each parameter's.

    "H_beta" and "H_meta_<state>" are the rows of β and of the meta state, "H" and "H_<state>" those of the weights
    and of the base state.
    """

    prefix: str
    meta: tuple[str, ...]

    @property
    def shared(self) -> tuple[str, ...]:
        return (f"{self.prefix}_beta", *(f"{self.prefix}_meta_{name}" for name in self.meta))

    def read(
        self,
        shared: dict[str, Any],
        states: Sequence[dict[str, Any]],
        base: Sequence[tuple[str, ...]],
        joined: Joined,
        leading: int,
    ) -> JointState:
        """The trace, its tensors joined; ``leading`` counts the dimensions before a parameter's own."""
        beta, *meta = (shared[name] for name in self.shared)
        weights = joined.join([state[self.prefix] for state in states], leading)
        rows = [[s[f"{self.prefix}_{name}"] for name in names] for s, names in zip(states, base, strict=True)]
        return JointState(beta, tuple(meta), weights, joined.join_rows(rows, leading))

    def write(
        self,
        shared: dict[str, Any],
        states: Sequence[dict[str, Any]],
        base: Sequence[tuple[str, ...]],
        joined: Joined,
        new: JointState,
    ) -> None:
        """Copy a trace back to where it is kept."""
        for name, value in zip(self.shared, (new.beta, *new.meta), strict=True):
            shared[name].copy_(value)
        for state, value in zip(states, joined.part(new.weights), strict=True):
            state[self.prefix].copy_(value)
        for state, names, row in zip(states, base, joined.part_rows(new.base), strict=True):
            for name, value in zip(names, row, strict=True):
                state[f"{self.prefix}_{name}"].copy_(value)


def step(
    *,
    kind: str,
    make_map: Callable[[list[int]], JointMap],
    keys: Sequence[Any],
    graph: Graph,
    factors: list[Tensor],
    params: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
    shared: dict[str, Any],
    meta: tuple[str, ...],
    base: Sequence[tuple[str, ...]],
    gamma: float,
) -> None:
    """Advance weights, β and traces in place.

    Args:
        kind: "l", "2x2" or "exact".
        make_map: the joint map for the parameters of these indices.
        keys: one a used parameter, equal where parameters may be joined (same rule, block, multiplier, decay and
            step count), None where one stands alone.
        graph: of the loss; ``graph.used`` are the parameters that move.
        factors: factor of each used gradient: clipping, and −1 to maximise.
        params, states: all parameters and their state.
        shared: the optimizer's shared state.
        meta: names of the meta rule's state.
        base: for each used parameter the names of its base rule's state.
        gamma: γ.
    """
    used = graph.used
    if not used:
        return
    own = [states[i] for i in used]
    graph.scale(factors)
    joined = Joined(keys, [params[i].shape for i in used])
    grads = joined.join([f * g.to(f.dtype) for f, g in zip(factors, graph.grads, strict=True)])
    s = JointState(
        shared["beta"],
        tuple(shared[f"meta_{name}"] for name in meta),
        joined.join([params[i].detach().to(f.dtype) for i, f in zip(used, factors, strict=True)]),
        joined.join_rows([[state[name] for name in names] for state, names in zip(own, base, strict=True)]),
    )
    joint = make_map([used[members[0]] for members in joined.members])
    first, second = Names("H", meta), Names("Q", meta)
    trace = first.read(shared, own, base, joined, 1)
    bend = second.read(shared, own, base, joined, 2) if kind == "exact" else None

    def hvp(v: Tensors) -> Tensors:
        return joined.join(graph.hvp(tuple(joined.part(v))))

    def third(u: Tensors, v: Tensors) -> Tensors:
        return joined.join(graph.third(tuple(joined.part(u)), tuple(joined.part(v))))

    new, new_trace, new_bend = advance(kind, joint, s, grads, trace, bend, gamma, hvp, third)
    z = sum_products(trace.weights, grads)
    d, moved = direction(joint.meta, z, s.meta, joint.meta_steps, s.beta, None)
    count_steps(shared["meta_step"], shared["skipped"], usable(z, s.beta - joint.meta_lr * d, moved))
    for i, w in zip(used, joined.part(new.weights), strict=True):
        params[i].copy_(w)
        states[i]["step"] += 1
    for state, names, row in zip(own, base, joined.part_rows(new.base), strict=True):
        for name, value in zip(names, row, strict=True):
            state[name].copy_(value)
    for old, value in zip((s.beta, *s.meta), (new.beta, *new.meta), strict=True):
        old.copy_(value)
    first.write(shared, own, base, joined, new_trace)
    if new_bend is not None:
        second.write(shared, own, base, joined, new_bend)


def init_shared(kind: str, beta: Tensor, meta: Rule) -> dict[str, Tensor]:
    """The traces of β and of the meta state at the start: Y = I, all else 0."""
    m = beta.numel()
    first, *rest = Names("H", meta.states).shared
    shapes = [x.shape for x in meta.init_state(beta)]
    shared = {first: torch.eye(m, dtype=beta.dtype, device=beta.device)}
    shared |= {name: beta.new_zeros((m, *shape)) for name, shape in zip(rest, shapes, strict=True)}
    if kind == "exact":
        first, *rest = Names("Q", meta.states).shared
        shared |= {first: beta.new_zeros((m, m, m))}
        shared |= {name: beta.new_zeros((m, m, *shape)) for name, shape in zip(rest, shapes, strict=True)}
    return shared


def init_state(kind: str, like: Tensor, m: int, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """A parameter's traces at the start, all 0; ``like`` has its shape and the state's dtype, ``base`` is its rule's
    state."""
    parts = {"": like, **{f"_{name}": value for name, value in base.items()}}
    state = {f"H{suffix}": x.new_zeros((m, *x.shape)) for suffix, x in parts.items()}
    if kind == "exact":
        state |= {f"Q{suffix}": x.new_zeros((m, m, *x.shape)) for suffix, x in parts.items()}
    return state
