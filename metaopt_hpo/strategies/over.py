"""A strategy over an optimizer that exists: MetaOptimize finds its learning rate, or a schedule sets it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metaopt_hpo.strategies.base import LRRun, StrategyError
from metaopt_hpo.strategies.checks import check_horizon
from metaopt_hpo.strategies.registry import make
from metaopt_hpo.strategies.schedules import Schedule
from metaopt_hpo.strategies.wrap import wrap


def over(
    optimizer: torch.optim.Optimizer,
    strategy: str,
    *,
    lr: float,
    horizon: int,
    model: nn.Module | None = None,
    options: Mapping[str, Any] | None = None,
) -> LRRun:
    """The run of an optimizer under a strategy chosen by name; the rest of its recipe stays.

    Args:
        optimizer: any torch optimizer for schedules; for "metaoptimize" one that `wrap` takes.
        strategy: "metaoptimize", or a schedule's name.
        lr: peak of the schedule; groups with different lr keep their ratios. MetaOptimize starts from the optimizer's.
        horizon: optimizer steps of the whole run.
        model: the model, where it has buffers.
        options: of the strategy.

    Raises:
        StrategyError: a strategy that builds an optimizer of its own.
    """
    given = dict(options or {})
    if strategy == "metaoptimize":
        return wrap(optimizer, horizon, model, **given)
    schedule = make(strategy, lr=lr, **given)
    if not isinstance(schedule, Schedule):
        raise StrategyError(
            f"strategy {strategy!r} brings an optimizer of its own; over yours it is metaoptimize or a schedule "
            "(wsd, cosine, linear, constant)"
        )
    return OverRun(schedule, optimizer, check_horizon(horizon))


class OverRun(LRRun):
    """An optimizer whose lr follows a schedule, its groups in proportion; the loop clips where it wants to."""

    def __init__(self, schedule: Schedule, optimizer: torch.optim.Optimizer, horizon: int) -> None:
        super().__init__(optimizer, horizon=horizon, max_grad_norm=None)
        self._schedule = schedule
        lrs = [float(g["lr"]) for g in optimizer.param_groups]
        top = max(lrs)
        if not top > 0:
            raise StrategyError("every group of the optimizer has lr 0; give the groups their relative lr")
        self._ratios = [v / top for v in lrs]

    def _before_step(self, step: int, loss: Tensor | None) -> None:
        factor = self._schedule.lr * self._schedule.multiplier(min(step, self.horizon - 1), self.horizon)
        for group, ratio in zip(self.optimizer.param_groups, self._ratios, strict=True):
            group["lr"] = ratio * factor

    def _extra_state(self) -> dict[str, Any]:
        return {"ratios": list(self._ratios)}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        self._ratios = [float(r) for r in state["ratios"]]
