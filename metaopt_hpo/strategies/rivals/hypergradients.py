"""Step sizes moved down their own gradient: gdtuo, and hypergradient descent.

Sources: Chandra et al. 2022, "Gradient Descent: The Ultimate Optimizer" (arXiv 1909.13371); Baydin et al. 2018
(arXiv 1703.04782).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metaopt_hpo.optim.presets import Hypergradient
from metaopt_hpo.optim.rules import AdamW
from metaopt_hpo.strategies.base import LRRun
from metaopt_hpo.strategies.checks import check_positive
from metaopt_hpo.strategies.registry import register
from metaopt_hpo.strategies.rivals.base import Rival, RivalRun


@register("gdtuo")
@dataclass(frozen=True, kw_only=True)
class GDTUO(Rival):
    """Adam whose lr and betas are trained by SGD through the step (package `gradient-descent-the-ultimate-optimizer`).

    The package replaces a module's parameters by nodes of a graph that reaches back into the last step; here
    the model keeps its parameters, and their gradients are handed to that graph, which is the same by the
    chain rule and bears clipping, accumulation and unused parameters (zero gradients: they drift along their
    momentum).

    It cannot be resumed: what it trains hangs on the graph of the last step, which cannot be saved.

    Args:
        lr: first step size (1e-3, the package's).
        betas: first betas, (0.9, 0.999) as in the package; they are trained too.
        weight_decay: must be 0: the package has none.
        max_grad_norm: no clipping by default, which would hide the gradient from the step it trains.
        meta_lr: lr of the SGD above (1e-5, as in the package's examples).
    """

    package: ClassVar[str] = "gradient-descent-the-ultimate-optimizer"
    module: ClassVar[str] = "gradient_descent_the_ultimate_optimizer.gdtuo"
    cannot_resume: ClassVar[str] = (
        "what it trains hangs on the autograd graph of the last step, which cannot be saved"
    )

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    meta_lr: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "meta_lr")
        if self.weight_decay != 0:
            raise ValueError(
                f"weight_decay of gdtuo must be 0, the package has none; got {self.weight_decay!r}"
            )
        if min(self.betas) <= 0:
            raise ValueError(f"betas of gdtuo must lie in (0, 1), got {self.betas!r}")

    def _optimizer(self, groups: list[dict[str, Any]], horizon: int) -> torch.optim.Optimizer:
        module = self._imported()
        inner = module.Adam(
            alpha=self.lr, beta1=self.betas[0], beta2=self.betas[1], optimizer=module.SGD(self.meta_lr)
        )
        return _Graph(groups, self.lr, module.Optimizable, inner)

    def _run(
        self, optimizer: torch.optim.Optimizer, horizon: int, model: nn.Module | list[nn.Parameter]
    ) -> LRRun:
        return GDTUORun(self, optimizer, horizon)


class _Graph(torch.optim.Optimizer):
    """The package's optimizer behind torch's interface: it steps copies of the parameters that carry its graph."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, optimizable: Any, inner: Any) -> None:
        super().__init__(groups, {"lr": lr})
        self.inner = inner
        self._params = [p for group in self.param_groups for p in group["params"]]
        device = self._params[0].device
        self._move_to(device)
        self._copies = optimizable({str(i): p.detach().clone() for i, p in enumerate(self._params)}, inner)

    def _move_to(self, device: torch.device) -> None:
        level = self.inner
        while hasattr(level, "parameters"):
            level.parameters = {name: value.to(device) for name, value in level.parameters.items()}
            level = level.optimizer

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step from the gradients in `.grad`."""
        # gradients of the loss at the copies, and through them at lr and betas of the step that made them
        self._copies.begin()
        self._copies.zero_grad()
        copies = list(self._copies.parameters.values())
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._params]
        torch.autograd.backward(copies, grads)
        self._copies.optimizer.step(self._copies.parameters)
        with torch.no_grad():
            for p, copy in zip(self._params, self._copies.parameters.values(), strict=True):
                p.copy_(copy)


class GDTUORun(RivalRun):
    """A run whose step size is the trained lr."""

    optimizer: _Graph

    def _step_sizes(self) -> Iterable[float | Tensor]:
        return [self.optimizer.inner.parameters["alpha"]]


@register("hypergradient")
@dataclass(frozen=True, kw_only=True)
class HypergradientDescent(Rival):
    """Hypergradient descent on AdamW's step size (Adam-HD): our preset, as no package of it is kept.

    The decayed and the exempt parameters have a step size each.

    Args:
        lr: first step size (1e-3, the paper's).
        kind: "additive", the paper's algorithm, or "multiplicative", its scale-free variant.
        meta_lr: the paper's β. None gives 1e-7 to the additive rule (the paper's for Adam-HD) and 0.02 to the
            multiplicative one, which moves the step size by at most that fraction a step.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    kind: str = "additive"
    meta_lr: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in ("additive", "multiplicative"):
            raise ValueError(f"kind must be 'additive' or 'multiplicative', got {self.kind!r}")
        if self.meta_lr is not None and not (math.isfinite(self.meta_lr) and self.meta_lr >= 0):
            raise ValueError(f"meta_lr must be finite and >= 0, or None, got {self.meta_lr!r}")

    def _optimizer(self, groups: list[dict[str, Any]], horizon: int) -> torch.optim.Optimizer:
        default = 1e-7 if self.kind == "additive" else 0.02
        return Hypergradient(
            groups,
            self.lr,
            kind=self.kind,
            base=AdamW(betas=self.betas),
            meta_lr=default if self.meta_lr is None else self.meta_lr,
        )

    def _run(
        self, optimizer: torch.optim.Optimizer, horizon: int, model: nn.Module | list[nn.Parameter]
    ) -> LRRun:
        return HypergradientRun(self, optimizer, horizon)


class HypergradientRun(RivalRun):
    """A run whose step sizes are the groups' live α."""

    def _step_sizes(self) -> Iterable[float | Tensor]:
        return [group["alpha"] for group in self.optimizer.param_groups]
