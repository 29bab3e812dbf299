"""AdaLRS: lr is searched in the run itself by the velocity at which the loss falls (arXiv 2506.13274, no package).

Dong et al. (NeurIPS 2025) raise lr and keep what makes the least-squares slope of the loss steeper. Written from
a description of their paper: window, factors and the end of the search are this file's, and so are its results.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metaopt_hpo.optim import host
from metaopt_hpo.strategies.base import LRRun, StrategyError
from metaopt_hpo.strategies.checks import check_fraction, check_horizon, scalar
from metaopt_hpo.strategies.groups import decay_groups
from metaopt_hpo.strategies.processes import mean_over_processes
from metaopt_hpo.strategies.registry import register
from metaopt_hpo.strategies.schedules import WSD, ScheduleRun
from metaopt_hpo.strategies.snapshot import Snapshot


@register("adalrs")
@dataclass(frozen=True, kw_only=True)
class AdaLRS(WSD):
    """Search of lr by loss velocity (AdaLRS) over AdamW, under a WSD schedule.

    After a window of steps lr is raised by `up`. If the loss then falls faster by more than the slope's error, it is
    raised again; if not, the run goes back to the weights before the trial, and lr is lowered by `down`.

    Args:
        window: fraction of the run over which a slope is measured.
        up, down: factors on lr; unequal, so that rates in between are reached.
        find: fraction of the run after which lr is held.
        lr, warmup, cooldown: see `WSD`; lr is the first one (1e-3).
    """

    tunes_lr: ClassVar[bool] = True
    bases: ClassVar[tuple[str, ...]] = ("adamw",)

    window: float = 0.02
    up: float = 2.0
    down: float = 0.7
    find: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self, "window", "find")
        if not (self.up > 1 > self.down > 0):
            raise ValueError(f"adalrs needs up > 1 > down > 0, got up={self.up!r} and down={self.down!r}")

    def build(self, model: nn.Module | Iterable[nn.Parameter], horizon: int) -> LRRun:
        model = model if isinstance(model, nn.Module) else list(model)
        optimizer = torch.optim.AdamW(decay_groups(model, self.weight_decay), lr=self.lr, betas=self.betas)
        return AdaLRSRun(self, optimizer, check_horizon(horizon), Snapshot(model, optimizer))


class AdaLRSRun(ScheduleRun):
    """One run; `AdaLRS` says what it does."""

    def __init__(self, strategy: AdaLRS, optimizer: Optimizer, horizon: int, kept: Snapshot) -> None:
        super().__init__(strategy, optimizer, horizon)
        self._strategy = strategy
        self._window = max(5, round(strategy.window * horizon))
        self._first = round(strategy.warmup * horizon)
        self._last = round(min(strategy.find, 1 - strategy.cooldown) * horizon)
        self._losses: list[Tensor] = []
        self._kept = kept  # what the trial under way goes back to
        self._before: float | None = None  # velocity before that trial; None while there is none

    @property
    def found_lr(self) -> float | None:
        """The rate that is held; None before that."""
        return self._peak if self.steps_taken >= self._last else None

    def step(self, loss: Tensor | None = None, *, scaler: torch.amp.GradScaler | None = None) -> None:
        """See `LRRun.step`; a step on which the run goes back takes no update."""
        loss = scalar(loss, self.optimizer.param_groups[0]["params"][0].device)
        if loss is None:
            raise StrategyError("adalrs searches by the training loss: call run.step(loss)")
        if self.steps_taken == self._last:
            self._kept.load_state_dict(None)  # nothing is tried any more
        if self._first <= self.steps_taken < self._last and self._goes_back(loss):
            self._skip()
        else:
            super().step(loss, scaler=scaler)

    def _goes_back(self, loss: Tensor) -> bool:
        self._losses.append(loss.detach().double().reshape(()))
        if len(self._losses) < self._window:
            return False
        velocity, error = _velocity(self._losses)
        self._losses = []
        if self._before is not None and not velocity > self._before + error:
            self._kept.restore()
            self._before, self._peak = None, self._peak * self._strategy.down / self._strategy.up
            return True
        self._kept.keep()
        self._before, self._peak = velocity, self._peak * self._strategy.up
        return False

    def _extra_state(self) -> dict[str, Any]:
        kept = self._kept.state_dict()
        return {"rate": self._peak, "losses": self._losses, "before": self._before, "kept": kept}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        self._peak, self._losses, self._before = float(state["rate"]), list(state["losses"]), state["before"]
        self._kept.load_state_dict(state["kept"])


def _velocity(losses: list[Tensor]) -> tuple[float, float]:
    y = mean_over_processes(torch.stack(losses))
    x = torch.arange(len(y), dtype=y.dtype, device=y.device) - (len(y) - 1) / 2
    slope = (x * y).sum() / x.square().sum()
    rest = (y - y.mean() - slope * x).square().sum() / max(1, len(y) - 2)
    return tuple(host.read([-slope, (rest / x.square().sum()).sqrt()]))  # type: ignore[return-value]
