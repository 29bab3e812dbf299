"""What is fixed before a run's first step: its quantities, its length, where it reports, and whose data it sees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metaopt_hpo.training.size import unique_count
from metaopt_hpo.trials.record import report_grid, token_grid


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A training run before it begins; the fields are the arguments of `training.run.TrainingRun`.

    Made, `flops_per_token` and `unique_tokens` hold what follows from the others where they were not given.

    Raises:
        ValueError: a field out of range.
    """

    size: float
    tokens: float
    batch: float
    flops_per_token: float = math.nan
    reports: int = 40
    report_stride: int | None = None
    unique_tokens: float = math.nan
    epochs: float | None = None
    seed: int = 0
    workload: str = ""
    params: Mapping[str, float | int | str | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("size", "tokens", "batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not math.isfinite(value) or value <= 0:
                raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
            object.__setattr__(self, name, float(value))
        for name in ("report_stride", "reports"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count!r}")
        if math.isnan(self.flops_per_token):
            object.__setattr__(self, "flops_per_token", 6.0 * self.size)
        object.__setattr__(self, "unique_tokens", unique_count(self.tokens, self.unique_tokens, self.epochs))

    @property
    def horizon(self) -> int:
        """Optimizer steps."""
        return math.ceil(self.tokens / self.batch)

    def report_points(self) -> ReportPoints:
        """Tokens at which it reports."""
        end = self.horizon * self.batch
        if self.report_stride is None:
            return ReportPoints(report_grid(end, start=self.batch, reports=self.reports))
        return ReportPoints(token_grid(end, start=self.batch, stride=self.report_stride))

    def fields(self) -> dict[str, Any]:
        """Of its `TrialRecord`."""
        return {
            "size": self.size,
            "batch": self.batch,
            "target_tokens": self.horizon * self.batch,
            "unique_tokens": self.unique_tokens,
            "seed": self.seed,
            "workload": self.workload,
            "params": dict(self.params),
        }


class ReportPoints:
    """Points of a token grid, each passed once."""

    def __init__(self, grid: Sequence[int]) -> None:
        self._grid = grid
        self._next = 0

    def passed(self, tokens: float) -> int | None:
        """The last point not yet passed that lies at or before `tokens`; None where there is no such point."""
        before = self._next
        self.go_on(tokens)
        return self._grid[self._next - 1] if self._next > before else None

    def go_on(self, tokens: float) -> None:
        """All points up to `tokens` have been passed."""
        while self._next < len(self._grid) and self._grid[self._next] <= tokens:
            self._next += 1
