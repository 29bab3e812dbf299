"""Bring a run that begins to diverge back: to weights that were still good, with a smaller step size.

The guard reads the training loss in windows. A window is bad when its mean is not finite, or when more than half
of the progress made so far is lost again; then model and optimizer return to the last snapshot and the caller
lowers the step size. The data go on: what is lost is the steps since the snapshot, not the run. A snapshot is one
copy of everything that trains, in host memory; nothing is read from a device but one pair of numbers a window.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from metaopt_hpo.strategies.processes import mean_over_processes

LOST = 0.5
"""A window that has lost this fraction of the progress from the first window to the best one is bad."""

ROOM = 0.1
"""A rise below this fraction of the first loss is never bad: early on there is no progress to lose."""

SIGMAS = 6.0
"""Nor is one within so many standard errors of a window's mean: the best window is the luckiest of many."""

MOST = 8
"""So many returns without a healthy window between them, and the guard gives up: the step size is not the reason."""


class Guard:
    """Watches one run.

    Args:
        model: what trains; of a module buffers are kept too (BatchNorm's statistics), of bare parameters not.
        optimizer: its whole state is kept.
        window: steps a window.
    """

    def __init__(
        self, model: nn.Module | Iterable[nn.Parameter], optimizer: torch.optim.Optimizer, window: int
    ) -> None:
        self._tensors: list[Tensor] = (
            [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else list(model)
        )
        self._optimizer = optimizer
        self._window = window
        self._sums: Tensor | None = None
        self._count = 0
        self._first = math.nan
        self._best = math.nan
        self._spread = math.nan
        self._snapshot: dict[str, Any] | None = None
        self.returns = 0
        """Returns since the last window that was as good as any before."""
        self.total = 0
        """Returns in the whole run."""

    @torch.no_grad()
    def look(self, loss: Tensor) -> bool:
        """Count the loss of the weights as they are; True where the run was just brought back.

        After a return the gradients in `.grad` belong to weights that are gone: the caller drops them.
        """
        if self._snapshot is None:
            self._keep()
        if self.returns > MOST:
            return False
        value = loss.detach().double().reshape(())
        pair = torch.stack([value, value * value])
        self._sums = pair if self._sums is None else self._sums + pair
        self._count += 1
        if self._count < self._window:
            return False
        total, squares = (mean_over_processes(self._sums) / self._count).tolist()
        self._sums, self._count = None, 0
        return self._judge(total, math.sqrt(max(squares - total * total, 0.0)))

    def _judge(self, mean: float, spread: float) -> bool:
        if math.isnan(self._first) and math.isfinite(mean):
            self._first = self._best = mean
            self._spread = spread
            return False
        progress = self._first - self._best
        noise = SIGMAS * max(self._spread, spread) / math.sqrt(self._window)
        allowed = max(LOST * progress, ROOM * abs(self._first), 0.0 if math.isnan(noise) else noise)
        if not mean <= self._best + allowed:  # NaN is bad
            self._bring_back()
            return True
        if mean <= self._best:
            self.returns = 0
        if mean <= self._best + 0.2 * allowed:
            self._keep()
        self._best = min(self._best, mean)
        self._spread = 0.8 * self._spread + 0.2 * spread
        return False

    def _keep(self) -> None:
        self._snapshot = {
            "tensors": [_to_host(t) for t in self._tensors],
            "optimizer": _copied(self._optimizer.state_dict()),
        }

    def _bring_back(self) -> None:
        assert self._snapshot is not None
        for tensor, kept in zip(self._tensors, self._snapshot["tensors"], strict=True):
            tensor.copy_(kept)
        # a copy: what is loaded is trained on, and the snapshot may be needed again
        self._optimizer.load_state_dict(_copied(self._snapshot["optimizer"]))
        self.returns += 1
        self.total += 1

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what happens next, the snapshot included."""
        names = ("_sums", "_count", "_first", "_best", "_spread", "_snapshot", "returns", "total")
        return {name.lstrip("_"): getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        self._sums, self._count = state["sums"], int(state["count"])
        self._first, self._best, self._spread = (float(state[k]) for k in ("first", "best", "spread"))
        self._snapshot = state["snapshot"]
        self.returns, self.total = int(state["returns"]), int(state["total"])


def _to_host(t: Tensor) -> Tensor:
    # a shard stays where it is: its copy must be sharded alike
    kept = t.detach()
    return kept.to("cpu", copy=True) if type(t) in (Tensor, nn.Parameter) else kept.clone()


def _copied(value: Any) -> Any:
    """A copy of nested dicts and lists whose tensors lie in host memory."""
    if isinstance(value, Tensor):
        return _to_host(value)
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(v) for v in value)
    return copy.deepcopy(value)
