"""What a live run leaves behind: curve, step size, gradient noise, cost, time and memory."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.trials.record import CURVE_FIELDS, Curve

NOISE_DECAY = 0.9
"""Decay of the running means behind the noise scale: about the last ten two-batch estimates."""


class NoiseScale:
    """Gradient-noise scale B_noise = tr Σ / |G|² from two batch sizes (McCandlish et al. 2018, appendix A.1).

    With |g_s|² and |g_b|² the squared gradient norms at batches B_s < B_b,

        |G|² ≈ (B_b |g_b|² − B_s |g_s|²) / (B_b − B_s),   tr Σ ≈ (|g_s|² − |g_b|²) / (1/B_s − 1/B_b).

    Each is unbiased, their ratio is not; so the two are averaged separately and divided last.
    """

    def __init__(self) -> None:
        self._signal: Tensor | None = None
        self._noise: Tensor | None = None

    def update(self, small_sq: Tensor, big_sq: Tensor, small: float, big: float) -> None:
        """Add one pair of squared norms; nothing is read back from the device."""
        signal = ((big * big_sq - small * small_sq) / (big - small)).double()
        noise = ((small_sq - big_sq) / (1 / small - 1 / big)).double()
        if self._signal is None or self._noise is None:
            self._signal, self._noise = torch.zeros_like(signal), torch.zeros_like(noise)
        self._signal, self._noise = (
            self._signal.to(signal.device),
            self._noise.to(noise.device),
        )  # a checkpoint's
        # a non-finite pair would poison the mean for good
        ok = torch.isfinite(signal) & torch.isfinite(noise)
        zero = torch.zeros_like(signal)
        self._signal = NOISE_DECAY * self._signal + (1 - NOISE_DECAY) * torch.where(ok, signal, zero)
        self._noise = NOISE_DECAY * self._noise + (1 - NOISE_DECAY) * torch.where(ok, noise, zero)

    def value(self) -> float:
        """The noise scale in the batch's unit (tokens); NaN before the first pair or where |G|² is not positive."""
        if self._signal is None or self._noise is None:
            return math.nan
        signal, noise = float(self._signal), float(self._noise)
        return noise / signal if signal > 0 and noise > 0 else math.nan

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {"signal": self._signal, "noise": self._noise}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        self._signal, self._noise = state["signal"], state["noise"]


class Recorder:
    """Collects the curve of one run; survives checkpoints, its clocks counting over restarts."""

    def __init__(self) -> None:
        self.noise = NoiseScale()
        self.cost = 0.0
        self._rows: dict[str, list[float]] = {name: [] for name in CURVE_FIELDS}
        self._seconds_before = 0.0
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the run, earlier parts of a resumed run included."""
        return self._seconds_before + time.perf_counter() - self._start

    @property
    def last_tokens(self) -> float:
        """Tokens of the last point; 0 before the first."""
        return self._rows["tokens"][-1] if self._rows["tokens"] else 0.0

    def report(self, tokens: float, loss: float, *, step_size: float, grad_norm: float) -> None:
        """Append one point; a replayed point (after a resume) replaces the old one and what came after it."""
        while self._rows["tokens"] and self._rows["tokens"][-1] >= tokens:
            for column in self._rows.values():
                column.pop()
        row = (tokens, loss, step_size, grad_norm, self.noise.value(), self.cost, self.seconds)
        for name, value in zip(CURVE_FIELDS, row, strict=True):
            self._rows[name].append(float(value))

    def curve(self) -> Curve | None:
        """The curve so far; None before the first report."""
        if not self._rows["tokens"]:
            return None
        return Curve(**{name: tuple(column) for name, column in self._rows.items()})

    def plateau(self) -> tuple[float, float]:
        """Median step size and standard deviation of its logarithm between a quarter and 70 % of the tokens,
        after any warm-up and before any cooldown of the usual lengths."""
        curve = self.curve()
        if curve is None:
            return math.nan, math.nan
        end = curve.tokens[-1]
        logs = sorted(
            math.log(s)
            for t, s in zip(curve.tokens, curve.step_size, strict=True)
            if 0.25 * end <= t <= 0.7 * end and s > 0 and math.isfinite(s)
        )
        if not logs:
            return math.nan, math.nan
        middle = len(logs) // 2
        median = logs[middle] if len(logs) % 2 else 0.5 * (logs[middle - 1] + logs[middle])
        mean = sum(logs) / len(logs)
        return math.exp(median), math.sqrt(sum((x - mean) ** 2 for x in logs) / len(logs))

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {
            "noise": self.noise.state_dict(),
            "cost": self.cost,
            "rows": self._rows,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`; the clock goes on from where it stood."""
        self.noise.load_state_dict(state["noise"])
        self.cost = float(state["cost"])
        self._rows = {name: list(state["rows"][name]) for name in CURVE_FIELDS}
        self._seconds_before = float(state["seconds"])
        self._start = time.perf_counter()


def peak_memory(device: torch.device) -> float:
    """Peak memory in bytes: of the allocator on CUDA, of the whole process so far elsewhere; NaN on Windows."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return math.nan
    import resource  # Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
