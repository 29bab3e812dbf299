"""Older step-size adaptation methods as small optimizers on the same rules: IDBD, Xu et al., hypergradient
descent.

They are special cases of MetaOptimize but for one thing: β (or α) moves *before* the weights of the same step.
What that leaves to each is its own trace, so each is a class of a few lines rather than an option of
:class:`MetaOptimize`.

Sources: Sutton 1992, "Adapting bias by gradient descent" (IDBD); Xu, van Hasselt and Silver 2018,
"Meta-gradient reinforcement learning" applied to step sizes, as arXiv 2402.02342 states it; Baydin et al. 2018,
"Online learning rate adaptation with hypergradient descent" (arXiv 1703.04782).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim.hessian import loss_graph
from metaopt_hpo.optim.metaoptimize import MetaOptimize
from metaopt_hpo.optim.rules import Rule, UnnormalisedAdamW, base_rule, direction

WEIGHTS = 4096
"""Most weights that IDBD and Xu take: each needs one Hessian-vector product a step."""

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class _WeightWise(torch.optim.Optimizer):
    """Gradient descent with a step size exp β for every weight: β' = β − η z, then w' = w − exp(β') ⊙ g."""

    def __init__(self, params: Params, lr: float, meta_lr: float) -> None:
        _check("lr", lr, lr > 0)
        _check("meta_lr", meta_lr, meta_lr >= 0)
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


class Hypergradient(torch.optim.Optimizer):
    """Hypergradient descent: one step size, moved along the product of this gradient and the last direction
    (Baydin et al.).

    With H = −(u + κw) of the last step and z = H·g, additive: α' = α − η z; multiplicative, as in the paper: α'
    = α (1 − η z / (‖g‖ ‖H‖)). Then w' = w − α'(u + κw) in the same step.

    Args:
        params: parameters.
        lr: α₀.
        kind: "additive" or "multiplicative".
        base: rule of the weights, as in :class:`MetaOptimize`; "sgd" is the paper's SGD-HD, "adamw" its
            Adam-HD.
        meta_lr: η, the paper's β.
        weight_decay: κ, decoupled.

    ``alpha`` is the live step size, a 0-dim tensor; a non-finite z leaves it as it is.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        *,
        kind: str = "additive",
        base: str | Rule = "sgd",
        meta_lr: float = 1e-7,
        weight_decay: float = 0.0,
    ) -> None:
        _check("lr", lr, lr > 0)
        _check("meta_lr", meta_lr, meta_lr >= 0)
        _check("weight_decay", weight_decay, weight_decay >= 0)
        if kind not in ("additive", "multiplicative"):
            raise ValueError(f"kind={kind!r} is not known: use 'additive' or 'multiplicative'")
        self._base, self._kind = base_rule(base), kind
        super().__init__(params, {"lr": lr, "meta_lr": meta_lr, "weight_decay": weight_decay})
        first = self.param_groups[0]["params"][0]
        for group in self.param_groups:
            group["alpha"] = torch.tensor(float(group["lr"]), dtype=first.dtype, device=first.device)

    @property
    def alpha(self) -> Tensor:
        """The step size of the first group."""
        value: Tensor = self.param_groups[0]["alpha"]
        return value

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure`` as for any torch optimizer."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        for p in params:
            if not self.state[p]:
                where = p.device if p.is_cuda else "cpu"
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=where)
                for name in (*self._base.states, "h"):
                    self.state[p][name] = torch.zeros_like(p)
        if not params:
            return
        alpha = group["alpha"]
        pairs = [(self.state[p]["h"], p.grad) for p in params]
        z = torch.stack([(h * g).sum() for h, g in pairs]).sum()
        if self._kind == "additive":
            new = alpha - group["meta_lr"] * z
        else:
            norms = [
                torch.linalg.vector_norm(torch.stack([x.norm() for x in side]))
                for side in zip(*pairs, strict=True)
            ]
            length = norms[0] * norms[1]
            new = alpha * (
                1 - group["meta_lr"] * z / torch.where(length > 0, length, torch.ones_like(length))
            )
        alpha.copy_(torch.where(torch.isfinite(new), new, alpha))
        for p in params:
            state = self.state[p]
            state["step"] += 1
            old = tuple(state[name] for name in self._base.states)
            t = float(state["step"]) if state["step"].is_cpu else state["step"].double()
            u, fresh = direction(self._base, p.grad, old, t, p, None)
            state["h"].copy_(-(u + group["weight_decay"] * p))
            p.add_(state["h"] * alpha)
            for x, value in zip(old, fresh, strict=True):
                x.copy_(value)


def authors_units(
    params: Params,
    lr: float = 1e-6,
    *,
    base: str | Rule = "adamw",
    meta: str | Rule = "adam",
    meta_lr: float = 1e-3,
    **options: Any,
) -> MetaOptimize:
    """MetaOptimize in the units of the paper's published experiments, where α₀ and η mean what its figures say.

    Their AdamW and meta-Adam keep m' = ρm + g, without 1−ρ and without bias correction, and put ε = 1e-10 inside the
    root (:class:`UnnormalisedAdamW`). At ρ = 0.9 each direction is ten times that of the printed algorithm, which
    :class:`MetaOptimize` implements: η = 1e-3 here moves ln α as η = 1e-2 there, and α₀ = 1e-6 here is 1e-5 there.
    SGD and Lion are the same in both; their SGD with momentum uses the momentum before the step, which this preset
    does not repeat. Written from the description of what that code computes, of which nothing is copied.

    Args:
        params, lr, meta_lr: as of :class:`MetaOptimize`, in these units.
        base, meta: "adamw" and "adam" become the unnormalised rule; any other is taken as it is.
        options: everything else that :class:`MetaOptimize` takes.
    """
    return MetaOptimize(
        params,
        lr,
        base=UnnormalisedAdamW() if base == "adamw" else base,
        meta=UnnormalisedAdamW() if meta == "adam" else meta,
        meta_lr=meta_lr,
        **options,
    )


def log_hypergradient(
    params: Params, lr: float = 1e-3, *, meta_lr: float = 1e-3, base: str | Rule = "sgd"
) -> MetaOptimize:
    """Hypergradient descent on ln α: MetaOptimize with γ = 0 and plain meta steps, α' = α exp(η α u_prev·g).

    Unlike Baydin's rules the new step size is first used in the next step, and it is always positive.
    """
    return MetaOptimize(params, lr, base=base, meta="sgd", meta_lr=meta_lr, gamma=0.0)


def _check(name: str, value: float, ok: bool) -> None:
    if not (ok and math.isfinite(value)):
        raise ValueError(
            f"{name}={value!r} is not allowed: it must be finite and "
            + ("> 0" if name == "lr" else "at least 0")
        )
