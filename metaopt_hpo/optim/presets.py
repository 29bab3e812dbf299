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

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim.metaoptimize import MetaOptimize
from metaopt_hpo.optim.rules import Rule, UnnormalisedAdamW, base_rule, direction
from metaopt_hpo.optim.weightwise import IDBD as IDBD
from metaopt_hpo.optim.weightwise import Params, check
from metaopt_hpo.optim.weightwise import Xu as Xu


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
        check("lr", lr, lr > 0)
        check("meta_lr", meta_lr, meta_lr >= 0)
        check("weight_decay", weight_decay, weight_decay >= 0)
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
