"""What a table of trials covered, and how far outside a prediction lies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Domain:
    """Ranges that the fitted trials covered: (low, high) each; `sizes` lists the distinct sizes."""

    size: tuple[float, float]
    tokens: tuple[float, float]
    batch: tuple[float, float]
    lr: tuple[float, float]
    sizes: tuple[float, ...]

    def factor(self, size: float, tokens: float) -> float:
        """How far outside (size, tokens) lies, as the larger factor; 1 inside."""
        (least, most), (fewest, longest) = self.size, self.tokens
        return max(1.0, size / most, least / size, tokens / longest, fewest / tokens)
