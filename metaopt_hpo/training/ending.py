"""What ends a run before its planned tokens, and what is said of one that ends where it began."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.errors import MetaOptError, MetaOptWarning
from metaopt_hpo.optim.host import Later
from metaopt_hpo.trials.diverged import EXPLODED, exploded

BAD_STEPS = 10
"""Consecutive steps with a non-finite training loss after which a run has diverged: one may be an overflow
that loss scaling or the optimizer skips."""

LEAST_GAIN = 0.01
"""A complete run whose held-out loss fell by less than this fraction has made no progress …"""

LEAST_STEPS = 20
"""… unless it was shorter than this, which nobody expects to learn."""


class NoProgress(MetaOptWarning):
    """A complete run ends where it began."""


class RunStopped(MetaOptError):
    """The run was told to stop before its planned tokens; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RunDiverged(RunStopped):
    """The loss became non-finite or exploded."""


def why_diverged(loss: float, initial: float, tokens: int) -> str | None:
    """The reason where a held-out loss says that the run has diverged, else None."""
    if not exploded(loss, initial):
        return None
    if not math.isfinite(loss):
        return f"held-out loss is {loss} after {tokens} tokens"
    return (
        f"held-out loss {loss:.4g} after {tokens} tokens is more than {EXPLODED:g} times "
        f"that of the untrained model ({initial:.4g})"
    )


def no_progress(loss: float, initial: float, steps: int) -> str | None:
    """What is said of a complete run that learned nothing, else None."""
    if steps < LEAST_STEPS or not initial - loss <= LEAST_GAIN * abs(initial):
        return None
    return f"made no progress: held-out loss {loss:.4g} after {steps} steps, {initial:.4g} before the first"


def warn_no_progress(strategy: str, base: str, said: str, *, stacklevel: int) -> None:
    """Warn of a run that learned nothing; `said` is what `no_progress` gave."""
    warnings.warn(
        f"the run under strategy {strategy!r} (base {base!r}) {said}; try another base or lr, and see whether the "
        "model can learn at all with plain AdamW",
        NoProgress,
        stacklevel=stacklevel + 1,
    )


class FiniteLosses:
    """Counts steps in a row whose training loss was not finite, without waiting for a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._bad: Tensor | None = None
        self._sent: Later | None = None
        # reading a flag back stalls a GPU, and costs nothing on the CPU
        self._every = 1 if device.type == "cpu" else 50

    def see(self, step: int, loss: Tensor) -> str | None:
        """Take in a step's loss; the reason where the run has diverged."""
        if self._bad is None:
            self._bad = torch.zeros((), dtype=torch.int64, device=loss.device)
        self._bad = torch.where(torch.isfinite(loss), torch.zeros_like(self._bad), self._bad + 1)
        if step % self._every:
            return None
        sent, self._sent = self._sent, Later(self._bad.reshape(1))
        if not self._sent.late:  # on a GPU what was sent at the last check is read, which has long arrived
            sent = self._sent
        bad = 0 if sent is None else int(sent.values()[0])
        return f"training loss was not finite for {bad} steps in a row" if bad >= BAD_STEPS else None

    def state(self) -> int:
        """The count so far."""
        return 0 if self._bad is None else int(self._bad)

    def load_state(self, count: Any) -> None:
        """Go on from a count."""
        self._bad = torch.tensor(int(count), dtype=torch.int64, device=self._device)
