"""A warning, once, when a step size has collapsed or exploded; it never makes a step wait for the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metaopt_hpo.errors import MetaOptWarning, warn
from metaopt_hpo.optim.host import Later

FAR = math.log(1e6)
"""How far ln α may go from where it started: a factor of a million, more than any schedule or search spans."""
EVERY = 50
"""On a device, β is looked at after every so many steps, through a copy that is read when it has arrived."""


class StepSizeWarning(MetaOptWarning):
    """A step size collapsed or exploded.

    Examples:
        >>> import warnings
        >>> from metaopt_hpo.optim import StepSizeWarning
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", StepSizeWarning)
        ...
    """


class Watch:
    """Looks at β after each step."""

    def __init__(self, start: float) -> None:
        self._start = start
        self._warned = False
        self._count = 0
        self._pending: Later | None = None

    def see(self, beta: Tensor) -> None:
        """Look at β, at once on a CPU."""
        if self._warned or beta.numel() == 0:
            return
        if beta.is_cpu:
            self.range(float(beta.min()), float(beta.max()))
            return
        if not beta.is_cuda:
            return
        if self._pending is not None and self._pending.arrived():
            low, high = self._pending.values()
            self._pending = None
            self.range(low, high)
        self._count += 1
        if self._count % EVERY == 0 and self._pending is None:
            self._pending = Later(torch.stack(torch.aminmax(beta)))

    def range(self, low: float, high: float) -> None:
        """Warn where the least or greatest β is too far from the start."""
        if self._warned or (low >= self._start - FAR and high <= self._start + FAR):
            return
        self._warned = True
        what = "collapsed" if low < self._start - FAR else "exploded"
        value = low if what == "collapsed" else high
        warn(
            f"a step size has {what}: it is exp({value:.4g}) and started at exp({self._start:.4g}); "
            "lower meta_lr, or set beta_bounds",
            StepSizeWarning,
        )
