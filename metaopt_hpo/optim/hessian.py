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

from metaopt_hpo.optim.meta import usable
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
    """Where a joint state's tensors are kept: in ``param_groups[0]`` and in each parameter's state."""

    beta: str
    meta: tuple[str, ...]
    weights: str
    base: tuple[str, ...]

    @staticmethod
    def of(prefix: str, meta: Sequence[str], base: Sequence[str]) -> Names:
        """The names of a trace: "H" and "H_<state>" of the weights, "H_beta" and "H_meta_<state>" of β."""
        return Names(
            f"{prefix}_beta",
            tuple(f"{prefix}_meta_{name}" for name in meta),
            prefix,
            tuple(f"{prefix}_{name}" for name in base),
        )

    def read(
        self, shared: dict[str, Any], states: Sequence[dict[str, Any]], joined: Joined, leading: int
    ) -> JointState:
        """The trace, its tensors joined; ``leading`` counts the dimensions before a parameter's own."""
        return JointState(
            shared[self.beta],
            tuple(shared[name] for name in self.meta),
            joined.join([state[self.weights] for state in states], leading),
            tuple(joined.join([state[name] for state in states], leading) for name in self.base),
        )

    def write(
        self, shared: dict[str, Any], states: Sequence[dict[str, Any]], joined: Joined, new: JointState
    ) -> None:
        """Copy a trace back to where it is kept."""
        for name, value in zip((self.beta, *self.meta), (new.beta, *new.meta), strict=True):
            shared[name].copy_(value)
        for name, row in zip((self.weights, *self.base), (new.weights, *new.base), strict=True):
            for state, value in zip(states, joined.part(row), strict=True):
                state[name].copy_(value)


class Joined:
    """Tensors joined into long ones and parted again; what is joined is advanced by the same operations.

    Args:
        keys: one a tensor; neighbours in the order of first appearance with equal keys are joined.
        shapes: their shapes.
    """

    def __init__(self, keys: Sequence[Any], shapes: Sequence[torch.Size]) -> None:
        order: dict[Any, list[int]] = {}
        for i, key in enumerate(keys):
            order.setdefault(key, []).append(i)
        self.members = list(order.values())
        self._shapes = list(shapes)

    def join(self, tensors: Sequence[Tensor], leading: int = 0) -> Tensors:
        """One long tensor a key; ``leading`` dimensions are kept."""
        return tuple(
            torch.cat([tensors[i].reshape(*tensors[i].shape[:leading], -1) for i in own], dim=-1)
            for own in self.members
        )

    def part(self, joined: Sequence[Tensor]) -> list[Tensor]:
        """The tensors again, in their order, with any leading dimensions kept."""
        out: dict[int, Tensor] = {}
        for own, long in zip(self.members, joined, strict=True):
            pieces = long.split([self._shapes[i].numel() for i in own], dim=-1)
            for i, piece in zip(own, pieces, strict=True):
                out[i] = piece.reshape(*piece.shape[:-1], *self._shapes[i])
        return [out[i] for i in range(len(self._shapes))]


def step(
    kind: str,
    make_map: Callable[[list[int]], JointMap],
    keys: Sequence[Any],
    graph: Graph,
    factors: list[Tensor],
    params: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
    shared: dict[str, Any],
    meta: Sequence[str],
    base: Sequence[str],
    gamma: float,
) -> None:
    """Advance weights, β and traces in place.

    Args:
        kind: "l", "2x2" or "exact".
        make_map: the joint map for the parameters of these indices.
        keys: one a used parameter, equal where parameters may be joined (same block, multiplier, decay and step
            count).
        graph: of the loss; ``graph.used`` are the parameters that move.
        factors: factor of each used gradient: clipping, and −1 to maximise.
        params, states: all parameters and their state.
        shared: ``param_groups[0]``.
        meta, base: names of the rules' state.
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
        tuple(joined.join([state[name] for state in own]) for name in base),
    )
    joint = make_map([used[members[0]] for members in joined.members])
    first, second = Names.of("H", meta, base), Names.of("Q", meta, base)
    trace = first.read(shared, own, joined, 1)
    bend = second.read(shared, own, joined, 2) if kind == "exact" else None

    def hvp(v: Tensors) -> Tensors:
        return joined.join(graph.hvp(tuple(joined.part(v))))

    def third(u: Tensors, v: Tensors) -> Tensors:
        return joined.join(graph.third(tuple(joined.part(u)), tuple(joined.part(v))))

    new, new_trace, new_bend = advance(kind, joint, s, grads, trace, bend, gamma, hvp, third)
    z = sum_products(trace.weights, grads)
    d, moved = joint.meta.update(z, s.meta, joint.meta_steps)
    ok = usable(z, s.beta - joint.meta_lr * d, moved)
    shared["meta_step"].add_(ok)
    shared["skipped"].add_(~ok.all())
    for i, w in zip(used, joined.part(new.weights), strict=True):
        params[i].copy_(w)
        states[i]["step"] += 1
    for name, row in zip(base, new.base, strict=True):
        for state, value in zip(own, joined.part(row), strict=True):
            state[name].copy_(value)
    for old, value in zip((s.beta, *s.meta), (new.beta, *new.meta), strict=True):
        old.copy_(value)
    first.write(shared, own, joined, new_trace)
    if new_bend is not None:
        second.write(shared, own, joined, new_bend)


def init_shared(kind: str, beta: Tensor, meta: Sequence[str]) -> dict[str, Tensor]:
    """The traces of β and of the meta state at the start: Y = I, all else 0."""
    m = beta.numel()
    names = Names.of("H", meta, ())
    shared = {names.beta: torch.eye(m, dtype=beta.dtype, device=beta.device)}
    shared |= {name: beta.new_zeros((m, m)) for name in names.meta}
    if kind == "exact":
        bend = Names.of("Q", meta, ())
        shared |= {name: beta.new_zeros((m, m, m)) for name in (bend.beta, *bend.meta)}
    return shared


def init_state(kind: str, like: Tensor, m: int, base: Sequence[str]) -> dict[str, Tensor]:
    """A parameter's traces at the start, all 0; ``like`` has its shape and the state's dtype."""
    names = Names.of("H", (), base)
    state = {name: like.new_zeros((m, *like.shape)) for name in (names.weights, *names.base)}
    if kind == "exact":
        bend = Names.of("Q", (), base)
        state |= {name: like.new_zeros((m, m, *like.shape)) for name in (bend.weights, *bend.base)}
    return state
