"""What all rivals share: loading the package, parameter groups, a schedule on top, and saving exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metaopt_hpo.optim.outside_graphs import outside_graphs
from metaopt_hpo.strategies.base import LRRun, LRStrategy, StrategyError
from metaopt_hpo.strategies.checks import check_fraction, check_horizon
from metaopt_hpo.strategies.groups import decay_groups
from metaopt_hpo.strategies.schedules import cooldown_factor, warmup_factor

SCHEDULES = ("constant", "cosine", "linear")


@dataclass(frozen=True, kw_only=True)
class Rival(LRStrategy):
    """A wrapped optimizer. Subclasses name their package and build its optimizer in `_optimizer`.

    Args:
        lr: in the rival's own meaning, which each class states.
        base: the one first-order rule the rival is built on; named so that a wrong wish is refused.
    """

    tunes_lr: ClassVar[bool] = True
    package: ClassVar[str] = ""
    """PyPI name of the package that is wrapped; "" for our own."""
    module: ClassVar[str] = ""
    """What is imported from it."""
    rule: ClassVar[str] = "adamw"
    cannot_resume: ClassVar[str] = ""
    """Why a run cannot be resumed; "" where it can."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.bases = (cls.rule,)

    def build(self, model: nn.Module | Iterable[nn.Parameter], horizon: int) -> LRRun:
        horizon = check_horizon(horizon)
        model = model if isinstance(model, nn.Module) else list(model)
        groups = decay_groups(model, self.weight_decay)
        for group in groups:  # the packages were written before parameters could have names
            group["params"] = [p[1] if isinstance(p, tuple) else p for p in group["params"]]
        return self._run(self._optimizer(groups, horizon), horizon, model)

    def _optimizer(self, groups: list[dict[str, Any]], horizon: int) -> torch.optim.Optimizer:
        raise NotImplementedError

    def _run(
        self, optimizer: torch.optim.Optimizer, horizon: int, model: nn.Module | list[nn.Parameter]
    ) -> LRRun:
        return RivalRun(self, optimizer, horizon)

    def multiplier(self, step: int, horizon: int) -> float:
        """Factor on every group's own lr at step `step` (0-based)."""
        return 1.0

    def _imported(self) -> Any:
        """The wrapped module.

        Raises:
            StrategyError: the package is not installed, or cannot be imported here.
        """
        try:
            return import_module(self.module)
        except ImportError as error:
            raise StrategyError(
                f"strategy {self.name!r} wraps the package {self.package!r}, which cannot be imported "
                f'({error}); run: pip install "metaopt-hpo[baselines]"'
            ) from error


@dataclass(frozen=True, kw_only=True)
class ScheduledRival(Rival):
    """A rival whose authors run it under a schedule that multiplies its adapted step size.

    Args:
        schedule: "constant", "cosine" or "linear" (both to zero) after the warm-up.
        warmup: fraction of the run over which the factor rises linearly from near 0 (default none).
    """

    schedule: str = "constant"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        check_fraction(self, "warmup")

    def multiplier(self, step: int, horizon: int) -> float:
        warmup = round(self.warmup * horizon)
        rise = warmup_factor(step, warmup)
        if self.schedule == "linear":
            return rise * cooldown_factor(step, horizon, horizon - warmup)
        if self.schedule == "cosine":
            done = max(0, step - warmup) / max(1, horizon - warmup)
            return rise * 0.5 * (1 + math.cos(math.pi * done))
        return rise


class RivalRun(LRRun):
    """A run under a wrapped optimizer.

    The schedule multiplies each group's own lr (kept as `initial_lr`, as torch's schedulers do), so that
    relative lrs survive where the package allows them.
    """

    def __init__(self, rival: Rival, optimizer: torch.optim.Optimizer, horizon: int) -> None:
        super().__init__(optimizer, horizon=horizon, max_grad_norm=rival.max_grad_norm)
        self.rival = rival
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.train()

    @outside_graphs
    def step(self, loss: Tensor | None = None, *, scaler: torch.amp.GradScaler | None = None) -> None:
        """See `LRRun.step`.

        Raises:
            StrategyError: no parameter has a gradient.
        """
        if all(p.grad is None for group in self.optimizer.param_groups for p in group["params"]):
            raise StrategyError("no parameter has a gradient; call loss.backward() before run.step(loss)")
        # entered with gradients on, and left so even if the package raises half-way
        with torch.enable_grad():
            super().step(loss, scaler=scaler)

    def _before_step(self, step: int, loss: Tensor | None) -> None:
        factor = self.rival.multiplier(min(step, self.horizon - 1), self.horizon)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def step_sizes(self) -> Tensor:
        """What the direction of the wrapped rule was multiplied by in the last step, float64."""
        values = [torch.as_tensor(v).detach().double().cpu().reshape(-1) for v in self._step_sizes()]
        return torch.cat(values)

    def _step_sizes(self) -> Iterable[float | Tensor]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """See `LRRun.state_dict`; of a rival that cannot resume only the counters are kept."""
        if self.rival.cannot_resume:
            return {"steps_taken": self.steps_taken, "horizon": self.horizon}
        return super().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `LRRun.load_state_dict`.

        Raises:
            StrategyError: another horizon, or a rival that cannot resume.
        """
        if self.rival.cannot_resume:
            raise StrategyError(
                f"a run under {self.rival.name!r} cannot be resumed: {self.rival.cannot_resume}; "
                "remove the checkpoint and start the run again"
            )
        super().load_state_dict(state)
        self._restore_dtypes(state["optimizer"])

    def _restore_dtypes(self, saved: dict[str, Any]) -> None:
        """Undo the cast of `Optimizer.load_state_dict`, which gives all state its parameter's dtype."""
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        keys = [key for group in saved["param_groups"] for key in group["params"]]
        for key, p in zip(keys, params, strict=True):
            for name, value in saved["state"].get(key, {}).items():
                if isinstance(value, Tensor) and self.optimizer.state[p][name].dtype != value.dtype:
                    self.optimizer.state[p][name] = value.clone().to(p.device)
