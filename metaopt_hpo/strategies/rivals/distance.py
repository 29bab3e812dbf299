"""Step sizes from the distance travelled: Prodigy, DoG, LDoG and D-Adaptation.

All estimate D = ‖w₀ − w*‖, from which the best constant step size follows. Sources: D-Adaptation, Defazio &
Mishchenko 2023 (arXiv 2301.07733); Prodigy, Mishchenko & Defazio 2024 (arXiv 2306.06101); DoG and LDoG, Ivgi,
Hinder & Carmon 2023 (arXiv 2302.12022).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metaopt_hpo.strategies.base import LRRun, StrategyError
from metaopt_hpo.strategies.checks import check_positive
from metaopt_hpo.strategies.registry import register
from metaopt_hpo.strategies.rivals.base import Rival, RivalRun, ScheduledRival


class DistanceRun(RivalRun):
    """A run whose step size is d · lr, d being the estimated distance."""

    def _step_sizes(self) -> Iterable[float | Tensor]:
        return [group["d"] * group["lr"] for group in self.optimizer.param_groups]


@register("prodigy")
@dataclass(frozen=True, kw_only=True)
class Prodigy(ScheduledRival):
    """Prodigy (package `prodigyopt`) over AdamW. The estimate d never falls; one lr holds for all groups.

    Args:
        lr: a factor on the estimate; its authors say to leave it at 1.
        schedule: cosine by default, as its authors recommend.
        d_coef: factor inside the estimate of d, the recommended knob if there must be one.
        d0: first estimate; rarely matters.
        bias_correction: Adam's bias correction.
        warmup: none by default; with one, its small lr is kept out of the estimate (`safeguard_warmup`).
    """

    package: ClassVar[str] = "prodigyopt"
    module: ClassVar[str] = "prodigyopt"

    lr: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "cosine"
    d_coef: float = 1.0
    d0: float = 1e-6
    bias_correction: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "d_coef", "d0")

    def _optimizer(self, groups: list[dict[str, Any]], horizon: int) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self._imported().Prodigy(
            groups,
            lr=self.lr,
            betas=self.betas,
            d_coef=self.d_coef,
            d0=self.d0,
            use_bias_correction=self.bias_correction,
            safeguard_warmup=self.warmup > 0,
        )
        return optimizer

    def _run(
        self, optimizer: torch.optim.Optimizer, horizon: int, model: nn.Module | list[nn.Parameter]
    ) -> LRRun:
        return DistanceRun(self, optimizer, horizon)


@register("d-adaptation")
@dataclass(frozen=True, kw_only=True)
class DAdaptation(ScheduledRival):
    """D-Adaptation (package `dadaptation`, its Adam variant) with decoupled decay. One lr holds for all groups.

    Args:
        lr: a factor on the estimate; its authors say to leave it at 1.
        schedule: cosine by default; its authors use the schedule the task would have had anyway.
        d0: first estimate; rarely matters.
        growth_rate: d grows by at most this factor a step; 1.02 acts as a warm-up (default unlimited).
    """

    package: ClassVar[str] = "dadaptation"
    module: ClassVar[str] = "dadaptation"

    lr: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "cosine"
    d0: float = 1e-6
    growth_rate: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "d0")
        if self.growth_rate is not None and not self.growth_rate > 1:
            raise ValueError(f"growth_rate must be above 1, or None for no limit, got {self.growth_rate!r}")

    def _optimizer(self, groups: list[dict[str, Any]], horizon: int) -> torch.optim.Optimizer:
        # said by group: as an argument it makes the package print
        groups = [{**group, "decouple": True} for group in groups]
        optimizer: torch.optim.Optimizer = self._imported().DAdaptAdam(
            groups,
            lr=self.lr,
            betas=self.betas,
            d0=self.d0,
            growth_rate=float("inf") if self.growth_rate is None else self.growth_rate,
        )
        return optimizer

    def _run(
        self, optimizer: torch.optim.Optimizer, horizon: int, model: nn.Module | list[nn.Parameter]
    ) -> LRRun:
        return DistanceRun(self, optimizer, horizon)


@register("dog")
@dataclass(frozen=True, kw_only=True)
class DoG(Rival):
    """Distance over Gradients (package `dog-optimizer`) over SGD, evaluated at the averaged weights.

    The package crashes on parameters without a gradient; they get a zero one here. It adds weight decay to the
    gradient (L2), so that under decay such parameters shrink too.

    Args:
        lr: the constant c; its authors say to leave it at 1.
        weight_decay: L2, none by default as in the package.
        max_grad_norm: no clipping by default, as gradient norms are what the method measures.
        reps_rel: first step relative to 1 + ‖w₀‖; the package suggests 1e-6, and 1e-4 with BatchNorm. None
            chooses by whether the model has BatchNorm.
        average: evaluate a polynomial-decay average of the weights, without which its authors say not to use
            DoG; running statistics of BatchNorm are averaged along.
        average_gamma: the average's γ; larger forgets sooner.
    """

    package: ClassVar[str] = "dog-optimizer"
    module: ClassVar[str] = "dog"
    rule: ClassVar[str] = "sgd"
    optimizer_name: ClassVar[str] = "DoG"

    lr: float = 1.0
    base: str = "sgd"
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    reps_rel: float | None = None
    average: bool = True
    average_gamma: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "average_gamma")
        if self.reps_rel is not None:
            check_positive(self, "reps_rel")

    def _optimizer(self, groups: list[dict[str, Any]], horizon: int) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = getattr(self._imported(), self.optimizer_name)(groups, lr=self.lr)
        return optimizer

    def _run(
        self, optimizer: torch.optim.Optimizer, horizon: int, model: nn.Module | list[nn.Parameter]
    ) -> LRRun:
        norms = _batch_norms(model)
        reps_rel = self.reps_rel if self.reps_rel is not None else (1e-4 if norms else 1e-6)
        for group in optimizer.param_groups:
            group["reps_rel"] = reps_rel
        averager = None
        if self.average:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            averager = self._imported().PolynomialDecayAverager(
                _averaged(parameters, norms), gamma=self.average_gamma
            )
        return DoGRun(self, optimizer, horizon, averager)


@register("ldog")
@dataclass(frozen=True, kw_only=True)
class LDoG(DoG):
    """DoG with a step size for every tensor of its own (package `dog-optimizer`); see `DoG`."""

    optimizer_name: ClassVar[str] = "LDoG"


class DoGRun(RivalRun):
    """A run under DoG or LDoG, with the package's averager behind `eval()`."""

    def __init__(self, rival: DoG, optimizer: torch.optim.Optimizer, horizon: int, averager: Any) -> None:
        self._averager = averager
        self._live: dict[str, Tensor] | None = None
        super().__init__(rival, optimizer, horizon)

    def _optimizer_step(self, loss: Tensor | None) -> None:
        if self._live is not None:
            raise StrategyError("the averaged weights are in place; call run.train() before training on")
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
        self.optimizer.step()
        if self._averager is not None:
            with torch.no_grad():
                self._averager.step()

    @torch.no_grad()
    def eval(self) -> None:
        """Put the averaged weights in place."""
        if self._averager is None or self._live is not None:
            return
        live = self._averager.base_model.state_dict()
        self._live = {name: value.clone() for name, value in live.items()}
        for name, value in self._averager.averaged_model.state_dict().items():
            live[name].copy_(value)

    @torch.no_grad()
    def train(self) -> None:
        """Put the weights that are trained back in place."""
        if self._live is None:
            return
        for name, value in self._averager.base_model.state_dict().items():
            value.copy_(self._live[name])
        self._live = None

    def _step_sizes(self) -> Iterable[float | Tensor]:
        layerwise = isinstance(self.rival, LDoG)
        for group in self.optimizer.param_groups:
            etas = group.get("eta", [0.0])  # there is no step size before the first gradient
            yield torch.stack([torch.as_tensor(eta) for eta in (etas if layerwise else etas[:1])])

    def state_dict(self) -> dict[str, Any]:
        if self._live is not None:
            raise StrategyError("the averaged weights are in place; call run.train() before saving")
        return super().state_dict()

    def _extra_state(self) -> dict[str, Any]:
        return {} if self._averager is None else {"averager": self._averager.state_dict()}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        self._live = None
        if self._averager is not None:
            self._averager.load_state_dict(state["averager"])


def _batch_norms(model: nn.Module | list[nn.Parameter]) -> list[nn.Module]:
    if not isinstance(model, nn.Module):
        return []
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def _averaged(parameters: list[nn.Parameter], norms: list[nn.Module]) -> nn.Module:
    """A module that shares the tensors to be averaged: weights and BatchNorm's statistics, and no other buffer,
    as counters and the like must not be averaged."""
    holder = nn.Module()
    for i, p in enumerate(parameters):
        holder.register_parameter(f"weight{i}", p)
    for i, norm in enumerate(norms):
        for name in ("running_mean", "running_var"):
            if getattr(norm, name) is not None:
                holder.register_buffer(f"{name}{i}", getattr(norm, name))
    return holder
