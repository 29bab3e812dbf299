"""Averaging instead of a schedule: Schedule-Free AdamW, and its union with Prodigy.

Gradients are taken at y, between the base iterate z and its average x; the model is evaluated at x. So the
weights differ between training and evaluation: `run.train()` and `run.eval()` switch. Running statistics of
BatchNorm belong to y; the package's authors recommend to recompute them at x before evaluating. Sources: Defazio
et al. 2024 (arXiv 2405.15682).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metaopt_hpo.strategies.base import LRRun, StrategyError
from metaopt_hpo.strategies.checks import check_fraction, check_positive
from metaopt_hpo.strategies.registry import register
from metaopt_hpo.strategies.rivals.base import Rival, RivalRun


@register("schedule-free")
@dataclass(frozen=True, kw_only=True)
class ScheduleFree(Rival):
    """Schedule-Free AdamW (package `schedulefree`): no decay schedule, but the lr must still be chosen.

    The package overwrites gradients in its step.

    Args:
        lr: constant lr after the warm-up (2.5e-3, the package's default; good values are 1–10 times AdamW's).
        warmup: fraction of the run (5 % by default), by the package's own warm-up, which also weights its
            average.
    """

    tunes_lr: ClassVar[bool] = False
    package: ClassVar[str] = "schedulefree"
    module: ClassVar[str] = "schedulefree"

    lr: float = 2.5e-3
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "warmup")
        if self.betas[0] <= 0:
            raise ValueError(f"betas of schedule-free must begin above 0: x is not defined at {self.betas!r}")

    def _optimizer(self, groups: list[dict[str, Any]], horizon: int) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self._imported().AdamWScheduleFree(
            groups, lr=self.lr, betas=self.betas, warmup_steps=round(self.warmup * horizon)
        )
        return optimizer

    def _run(
        self, optimizer: torch.optim.Optimizer, horizon: int, model: nn.Module | list[nn.Parameter]
    ) -> LRRun:
        return ScheduleFreeRun(self, optimizer, horizon)


@register("prodigy-schedule-free")
@dataclass(frozen=True, kw_only=True)
class ProdigyScheduleFree(Rival):
    """Prodigy and Schedule-Free in one (package `prodigy-plus-schedule-free`), without schedule or warm-up.

    Some of its state is bfloat16, which torch's `load_state_dict` would widen; it is restored exactly here.
    The package has no stable resume between its own versions.

    Args:
        lr: a factor on the estimate; its author says to leave it at 1.
        betas: (0.9, 0.99), the package's.
        max_grad_norm: no clipping, as its author says it hampers the estimate; the package scales updates
            itself.
        d_coef: factor inside the estimate, the recommended knob if there must be one.
        d0: first estimate; 1e-5 or 1e-4 if a run does not get going.
    """

    package: ClassVar[str] = "prodigy-plus-schedule-free"
    module: ClassVar[str] = "prodigyplus"

    lr: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float | None = None
    d_coef: float = 1.0
    d0: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "d_coef", "d0")
        if self.betas[0] <= 0:
            raise ValueError(f"betas of schedule-free must begin above 0: x is not defined at {self.betas!r}")

    def _optimizer(self, groups: list[dict[str, Any]], horizon: int) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self._imported().ProdigyPlusScheduleFree(
            groups,
            lr=self.lr,
            betas=self.betas,
            d_coef=self.d_coef,
            d0=self.d0,
            # one d for all, as in Prodigy: our groups are the decayed and the exempt part of one network
            split_groups=False,
        )
        return optimizer

    def _run(
        self, optimizer: torch.optim.Optimizer, horizon: int, model: nn.Module | list[nn.Parameter]
    ) -> LRRun:
        return ScheduleFreeRun(self, optimizer, horizon)


class ScheduleFreeRun(RivalRun):
    """A run with separate weights for training and evaluation."""

    def _optimizer_step(self, loss: Tensor | None) -> None:
        if not self.optimizer.param_groups[0]["train_mode"]:
            raise StrategyError(
                "the weights of evaluation are in place; call run.train() before the forward pass"
            )
        self.optimizer.step()

    def _step_sizes(self) -> Iterable[float | Tensor]:
        for group in self.optimizer.param_groups:
            # of the step of z: scheduled lr in one package, d_prev · lr in the other
            yield group["d_prev"] * group["lr"] if "d_prev" in group else group["scheduled_lr"]
