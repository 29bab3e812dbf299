"""The backward pass of a step, in one part or several, and the gradient noise that several parts show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

NOISE_EVERY = 8
"""Every how many steps the loop is asked for two half-batches, to estimate gradient noise."""

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


def backward(
    losses: Sequence[Tensor],
    model: nn.Module,
    *,
    scaler: torch.amp.GradScaler | None,
    noise: NoiseScale,
    batch: float,
) -> Tensor:
    """Fill the gradients with their mean over equal parts of a batch, and return the mean loss.

    Args:
        losses: one a part, each from a forward pass of its own; two or more also update `noise`.
        batch: tokens of all parts together.
    """
    parts = len(losses)
    total = torch.zeros_like(losses[0])
    small = None
    for loss in losses:
        part = loss / parts if parts > 1 else loss
        (part if scaler is None else scaler.scale(part)).backward()
        total = total + part.detach()
        if parts > 1 and small is None:
            small = _squared_norm(model, scaler) * parts**2
    if small is not None:
        noise.update(small, _squared_norm(model, scaler), batch / parts, batch)
    return total


def _squared_norm(model: nn.Module, scaler: torch.amp.GradScaler | None) -> Tensor:
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    # a product with the scale on the device, for get_scale() waits for it
    return (norm if scaler is None else norm / scaler.scale(torch.ones_like(norm))) ** 2
