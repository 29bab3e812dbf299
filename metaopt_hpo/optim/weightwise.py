"""A step size for every weight by older methods: IDBD and Xu et al.; see ``presets``, which offers them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim.hessian import loss_graph

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
WEIGHTS = 4096
"""Most weights that IDBD and Xu take: each needs one Hessian-vector product a step."""


class _WeightWise(torch.optim.Optimizer):
    """Gradient descent with a step size exp β for every weight: β' = β − η z, then w' = w − exp(β') ⊙ g."""

    def __init__(self, params: Params, lr: float, meta_lr: float) -> None:
        check("lr", lr, lr > 0)
        check("meta_lr", meta_lr, meta_lr >= 0)
        super().__init__(params, {"lr": lr, "meta_lr": meta_lr})
        every = list(chain.from_iterable(group["params"] for group in self.param_groups))
        n = sum(p.numel() for p in every)
        if n > WEIGHTS:
            raise ValueError(
                f"{type(self).__name__} needs one Hessian-vector product a weight: {n} are more than {WEIGHTS}"
            )
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["beta"] = torch.full_like(p, math.log(group["lr"]))
                self.state[p]["h"] = self._first_trace(p, n)

    @abstractmethod
    def _first_trace(self, p: Tensor, n: int) -> Tensor:
        """The trace of a parameter at the start, 0."""

    @abstractmethod
    def _meta_gradient(self, traces: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        """z, one tensor a parameter."""

    @abstractmethod
    def _new_traces(
        self, traces: list[Tensor], grads: list[Tensor], alphas: list[Tensor], hvp: Callable[[Any], Any]
    ) -> list[Tensor]:
        """The traces after the step, with the new step sizes."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure`` returns the loss and does not call ``backward()``.

        Raises:
            ValueError: no closure, or one that cannot be used.
        """
        rows = [(p, group["meta_lr"]) for group in self.param_groups for p in group["params"]]
        loss, graph = loss_graph(closure, [p for p, _ in rows], type(self).__name__)
        params, grads = [rows[i][0] for i in graph.used], list(graph.grads)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        states = [self.state[p] for p in params]
        traces = [state["h"] for state in states]
        zs = self._meta_gradient(traces, grads)
        for i, state, z in zip(graph.used, states, zs, strict=True):
            state["beta"].sub_(torch.where(torch.isfinite(z), rows[i][1] * z, 0.0))
        alphas = [state["beta"].exp() for state in states]
        new = self._new_traces(traces, grads, alphas, graph.hvp)
        for p, g, alpha, h, value in zip(params, grads, alphas, traces, new, strict=True):
            p.sub_(alpha * g)
            h.copy_(value)
        return loss.detach()

    def step_sizes(self) -> Tensor:
        """exp β of every weight, parameters in group order."""
        every = chain.from_iterable(group["params"] for group in self.param_groups)
        return torch.cat([self.state[p]["beta"].exp().reshape(-1) for p in every])


class IDBD(_WeightWise):
    """Incremental delta-bar-delta: a step size for every weight, the Hessian kept as its diagonal (Sutton
    1992).

    β' = β − η h ⊙ g;  α' = exp β';  w' = w − α' ⊙ g;  h' = (1 − α' ⊙ diag ∇²f)⁺ ⊙ h − α' ⊙ g.

    For the squared error ½(aᵀw − b)² of a linear model diag ∇²f = a², and these are Sutton's equations.

    Args:
        params: at most 4,096 weights (one Hessian-vector product each).
        lr: α₀ of every weight.
        meta_lr: η, Sutton's θ.
    """

    def __init__(self, params: Params, lr: float = 0.05, *, meta_lr: float = 0.01) -> None:
        super().__init__(params, lr, meta_lr)

    def _first_trace(self, p: Tensor, n: int) -> Tensor:
        return torch.zeros_like(p)

    def _meta_gradient(self, traces: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        return [h * g for h, g in zip(traces, grads, strict=True)]

    def _new_traces(
        self, traces: list[Tensor], grads: list[Tensor], alphas: list[Tensor], hvp: Callable[[Any], Any]
    ) -> list[Tensor]:
        new = []
        for i, (h, g, alpha) in enumerate(zip(traces, grads, alphas, strict=True)):
            diagonal = torch.zeros_like(g).reshape(-1)
            for j in range(g.numel()):
                unit = [torch.zeros_like(x) for x in grads]
                unit[i].reshape(-1)[j] = 1.0
                diagonal[j] = hvp(tuple(unit))[i].reshape(-1)[j]
            keep = (1 - alpha * diagonal.view(g.shape)).clamp(min=0.0)
            new.append(keep * h - alpha * g)
        return new


class Xu(_WeightWise):
    """A step size for every weight with the whole trace: β' = β − η Hᵀg, H' = (I − [α']∇²f)H − [α' ⊙ g].

    [x] is the diagonal matrix of x, and α' = exp β' as in :class:`IDBD`.

    Args:
        params: at most 4,096 weights (one Hessian-vector product each, n² floats).
        lr: α₀ of every weight.
        meta_lr: η.
    """

    def __init__(self, params: Params, lr: float = 0.05, *, meta_lr: float = 0.01) -> None:
        super().__init__(params, lr, meta_lr)

    def _first_trace(self, p: Tensor, n: int) -> Tensor:
        return p.detach().new_zeros((n, *p.shape))  # column k of H is h[k]

    def _meta_gradient(self, traces: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        z = torch.stack(
            [h.reshape(h.shape[0], -1) @ g.reshape(-1) for h, g in zip(traces, grads, strict=True)]
        ).sum(0)
        return [
            z[start : start + g.numel()].view(g.shape)
            for start, g in zip(self._starts(grads), grads, strict=True)
        ]

    def _new_traces(
        self, traces: list[Tensor], grads: list[Tensor], alphas: list[Tensor], hvp: Callable[[Any], Any]
    ) -> list[Tensor]:
        new = [h.clone() for h in traces]
        for k in range(traces[0].shape[0]):
            for h, q, alpha in zip(new, hvp(tuple(h[k] for h in traces)), alphas, strict=True):
                h[k] -= alpha * q
        for h, g, alpha, start in zip(new, grads, alphas, self._starts(grads), strict=True):
            own = h[start : start + g.numel()].reshape(g.numel(), -1)
            own.diagonal().sub_((alpha * g).reshape(-1))
        return new

    def _starts(self, grads: list[Tensor]) -> list[int]:
        """Where each parameter's own columns of H start."""
        every = list(chain.from_iterable(group["params"] for group in self.param_groups))
        if len(grads) != len(every):
            raise ValueError(
                "Xu needs a gradient for every parameter: leave out those that the loss does not use"
            )
        starts = [0]
        for p in every[:-1]:
            starts.append(starts[-1] + p.numel())
        return starts


def check(name: str, value: float, ok: bool) -> None:
    """Raise ``ValueError`` unless a value is finite and ``ok``."""
    if not (ok and math.isfinite(value)):
        raise ValueError(
            f"{name}={value!r} is not allowed: it must be finite and "
            + ("> 0" if name == "lr" else "at least 0")
        )
