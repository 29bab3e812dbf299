"""Bring a run that begins to diverge back: to weights that were still good, with a smaller step size.

The guard reads the training loss in windows. A window is bad when its mean is not finite, or when more than half
of the progress made so far is lost again; then model and optimizer return to the last snapshot and the caller
lowers the step size. The data go on: what is lost is the steps since the snapshot, not the run. Nothing is read
from a device but one pair of numbers a window, one step after the window, when the next step is queued already and
the device does not run out of work; `snapshot` says what a copy costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from metaopt_hpo.errors import warn
from metaopt_hpo.optim.host import Later
from metaopt_hpo.strategies.errors import RunWarning
from metaopt_hpo.strategies.processes import mean_over_processes
from metaopt_hpo.strategies.snapshot import Snapshot

LOST = 0.5
"""A window that has lost this fraction of the progress from the first window to the best one is bad."""

ROOM = 0.1
"""A rise below this fraction of the first loss is never bad: early on there is no progress to lose."""

SIGMAS = 8.0
"""Nor is one within so many standard errors of a window's mean: the best window is the minimum of many. At 6, noise of
a sixth of the loss brought back 2 % of runs that learned; at 8 it is one in a thousand."""

MOST = 8
"""So many returns without a healthy window between them, and the guard gives up: the step size is not the reason."""


class Guard:
    """Watches one run.

    Args:
        model, optimizer: what is kept; see `Snapshot`.
        window: steps a window.
    """

    def __init__(
        self, model: nn.Module | Iterable[nn.Parameter], optimizer: torch.optim.Optimizer, window: int
    ) -> None:
        self._snapshot = Snapshot(model, optimizer)
        self._window = window
        self._sums: Tensor | None = None
        self._count = 0
        self._pending: Later | None = None
        """Means of a window that is over, of the loss and of its square, on their way from a device."""
        self._first = math.nan
        self._best = math.nan
        self._spread = math.nan
        self.returns = 0
        """Returns since the last window that was as good as any before."""
        self.total = 0
        """Returns in the whole run."""

    def keeps_too(self, snapshot: Snapshot) -> None:
        """Keep and restore something beside model and optimizer."""
        self._snapshot.beside = snapshot

    def refuses(self, loss: Tensor) -> bool:
        """Whether a guard that has given up keeps a step with this loss from the weights: it is not finite."""
        return self.returns > MOST and not bool(mean_over_processes(loss.detach().double()).isfinite())

    def say_if_given_up(self) -> None:
        """One warning when the last return was one too many."""
        if self.returns == MOST + 1:
            warn(
                f"the loss is not finite or does not come back after {self.returns} returns to the last good weights "
                "at ever smaller step sizes, so that its step size alone does not bring it back: look at the data, the "
                "model and the loss, which must be one to minimise",
                RunWarning,
            )

    @torch.no_grad()
    def look(self, loss: Tensor) -> bool:
        """Count the loss of the weights as they are; True where the run was just brought back.

        After a return the gradients in `.grad` belong to weights that are gone: the caller drops them.
        """
        if self._snapshot.empty:
            self._snapshot.keep()
        if self.returns > MOST:
            return False
        back = self._read()
        if back:  # this loss belongs to weights that are gone
            return True
        value = loss.detach().double().reshape(())
        pair = torch.stack([value, value * value])
        self._sums = pair if self._sums is None else self._sums.to(pair.device) + pair
        self._count += 1
        if self._count < self._window:
            return False
        self._pending = Later(mean_over_processes(self._sums) / self._count)
        self._sums, self._count = None, 0
        return not self._pending.late and self._read()

    def _read(self) -> bool:
        """Judge a window whose means are on their way, if there is one."""
        if self._pending is None:
            return False
        total, squares = self._pending.values()
        self._pending = None
        unbiased = self._window / max(self._window - 1, 1)
        return self._judge(total, math.sqrt(unbiased * max(squares - total * total, 0.0)))

    def _judge(self, mean: float, spread: float) -> bool:
        if math.isnan(self._first) and math.isfinite(mean):
            self._first = self._best = mean
            self._spread = spread
            return False
        progress = self._first - self._best
        noise = SIGMAS * max(self._spread, spread) / math.sqrt(self._window)
        allowed = max(LOST * progress, ROOM * abs(self._first), 0.0 if math.isnan(noise) else noise)
        if not mean <= self._best + allowed:  # NaN is bad
            self._snapshot.restore()
            self.returns += 1
            self.total += 1
            return True
        if mean <= self._best:
            self.returns = 0
        if mean <= self._best + 0.2 * allowed:
            self._snapshot.keep()
        self._best = min(self._best, mean)
        self._spread = 0.8 * self._spread + 0.2 * spread
        return False

    def state_dict(self, *, snapshot: bool = True) -> dict[str, Any]:
        """Everything that decides what happens next.

        Args:
            snapshot: with the weights and optimizer state to go back to (default). Without, a resumed run takes a new
                copy at its first step, which makes a difference only if the next window is a bad one.
        """
        names = ("_sums", "_count", "_first", "_best", "_spread", "returns", "total")
        state = {name.lstrip("_"): getattr(self, name) for name in names}
        state["pending"] = None if self._pending is None else self._pending.device_values
        return {**state, "snapshot": self._snapshot.state_dict() if snapshot else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        self._sums, self._count = state["sums"], int(state["count"])
        pending = state.get("pending")
        self._pending = None if pending is None else Later(pending)
        self._first, self._best, self._spread = (float(state[k]) for k in ("first", "best", "spread"))
        self._snapshot.load_state_dict(state["snapshot"])
        self.returns, self.total = int(state["returns"]), int(state["total"])
