"""Tuners of another optimizer's step size: Mechanic and MoMo.

Sources: Mechanic, Cutkosky, Defazio & Mehta 2023 (arXiv 2306.00144); MoMo, Schaipp et al. 2024
(arXiv 2305.07583).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metaopt_hpo.strategies.base import LRRun, StrategyError
from metaopt_hpo.strategies.checks import check_positive
from metaopt_hpo.strategies.processes import mean_over_processes
from metaopt_hpo.strategies.registry import register
from metaopt_hpo.strategies.rivals.base import RivalRun, ScheduledRival


@register("mechanic")
@dataclass(frozen=True, kw_only=True)
class Mechanic(ScheduledRival):
    """Mechanic (package `mechanic-pytorch`) over torch's AdamW: learns the scale s of the base's updates.

    It cannot be resumed: the package keys its state by the parameters themselves, which a loaded state
    does not know (KeyError in 0.0.1); loading is refused.

    Args:
        lr: of the base; what counts is s · lr, so 1 makes s the step size itself.
        schedule: cosine by default: its authors keep the base's schedule.
        warmup: 5 % of the run by default, as for the base alone.
        s_init: first scale (the package's 1e-8).
        s_decay: the paper's λ (0.01).
    """

    package: ClassVar[str] = "mechanic-pytorch"
    module: ClassVar[str] = "mechanic_pytorch"
    cannot_resume: ClassVar[str] = (
        "mechanic-pytorch keys its state by parameter objects, which do not survive saving"
    )

    lr: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "cosine"
    warmup: float = 0.05
    s_init: float = 1e-8
    s_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "s_init")
        if not (math.isfinite(self.s_decay) and self.s_decay >= 0):
            raise ValueError(f"s_decay must be finite and >= 0, got {self.s_decay!r}")

    def _optimizer(self, groups: list[dict[str, Any]], horizon: int) -> torch.optim.Optimizer:
        mechanized = self._imported().mechanize(torch.optim.AdamW, s_init=self.s_init, s_decay=self.s_decay)
        optimizer: torch.optim.Optimizer = mechanized(groups, lr=self.lr, betas=self.betas)
        return optimizer

    def _run(
        self, optimizer: torch.optim.Optimizer, horizon: int, model: nn.Module | list[nn.Parameter]
    ) -> LRRun:
        return MechanicRun(self, optimizer, horizon)


class MechanicRun(RivalRun):
    """A run whose step size is s · lr, s being the sum of the tuner's scales."""

    def _step_sizes(self) -> Iterable[float | Tensor]:
        tuner = self.optimizer.state.get("_mechanic")  # type: ignore[call-overload]
        scale = 0.0 if tuner is None else float(tuner["s"].sum())
        return [scale * group["lr"] for group in self.optimizer.param_groups]


@register("momo")
@dataclass(frozen=True, kw_only=True)
class MoMo(ScheduledRival):
    """MoMo-Adam (package `momo-opt`): the step a model of the loss allows, at most `lr`. The step needs the loss.

    The package forgets its running loss and step count on saving, so that resumed runs diverge from the
    original; they are kept here, and a resumed run is the same run.

    Args:
        lr: upper bound of the step size, 1e-2 by default as in the package.
        weight_decay: proximal; none by default as in the package, whose step size is derived for one decay
            on all weights. With decay on matrices only it is an approximation.
        max_grad_norm: no clipping: a clipped gradient is not the loss's, and the model would be wrong.
        lower_bound: lower bound of the training loss (0).
        estimate_bound: estimate the bound as the run goes (MoMo*).
    """

    package: ClassVar[str] = "momo-opt"
    module: ClassVar[str] = "momo"

    lr: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    lower_bound: float = 0.0
    estimate_bound: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.lower_bound):
            raise ValueError(f"lower_bound must be a finite loss, got {self.lower_bound!r}")

    def _optimizer(self, groups: list[dict[str, Any]], horizon: int) -> torch.optim.Optimizer:
        if self.weight_decay == 0:  # one group, which is what the package's formula is for
            groups = [{"params": [p for group in groups for p in group["params"]], "weight_decay": 0.0}]
        optimizer: torch.optim.Optimizer = self._imported().MomoAdam(
            groups, lr=self.lr, betas=self.betas, lb=self.lower_bound, use_fstar=self.estimate_bound
        )
        return optimizer

    def _run(
        self, optimizer: torch.optim.Optimizer, horizon: int, model: nn.Module | list[nn.Parameter]
    ) -> LRRun:
        return MoMoRun(self, optimizer, horizon)


class MoMoRun(RivalRun):
    """A run under MoMo. The package does not keep the step size it took, so it is measured on one tensor a
    group, the smallest that has a gradient."""

    optimizer: Any
    _FORGOTTEN = ("loss_avg", "lb", "_number_steps")

    def __init__(self, rival: MoMo, optimizer: torch.optim.Optimizer, horizon: int) -> None:
        super().__init__(rival, optimizer, horizon)
        self._taken = [0.0] * len(optimizer.param_groups)

    def _optimizer_step(self, loss: Tensor | None) -> None:
        if loss is None:
            raise StrategyError("momo needs the training loss: run.step(loss)")
        before = []
        for group in self.optimizer.param_groups:
            p = min((p for p in group["params"] if p.grad is not None), key=Tensor.numel, default=None)
            before.append((p, None if p is None else p.detach().double()))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="More than one param group")
            self.optimizer.step(loss=mean_over_processes(loss.detach()))
        self._taken = [
            old if p is None or start is None else self._measured(group, p, start)
            for group, old, (p, start) in zip(self.optimizer.param_groups, self._taken, before, strict=True)
        ]

    def _measured(self, group: dict[str, Any], p: Tensor, start: Tensor) -> float:
        state = self.optimizer.state[p]
        correction = 1 - group["betas"][1] ** self.optimizer._number_steps
        u = state["grad_avg"].double() / ((state["grad_avg_sq"].double() / correction).sqrt() + group["eps"])
        moved = start - p.detach().double() * (1 + group["lr"] * group["weight_decay"])
        return float((moved * u).sum() / (u * u).sum().clamp(min=torch.finfo(torch.float64).tiny))

    def _step_sizes(self) -> Iterable[float | Tensor]:
        return self._taken

    def _extra_state(self) -> dict[str, Any]:
        kept = {name: getattr(self.optimizer, name) for name in self._FORGOTTEN}
        return {"momo": kept, "taken": list(self._taken)}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        for name in self._FORGOTTEN:
            setattr(self.optimizer, name, state["momo"][name])
        self._taken = list(state["taken"])
