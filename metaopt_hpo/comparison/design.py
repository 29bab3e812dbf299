"""What a comparison compares."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from metaopt_hpo.comparison.methods import method as method_named


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """What is compared. Saved as JSON beside the results, so that they can be resumed and reproduced.

    Args:
        workload: name of the objective.
        methods: names of the search methods.
        seeds: each method is run once for each.
        size: the target size; pilots are run at `pilot_sizes`, all smaller.
        tokens, batch: of every run.
        lr_bounds: the range external methods search.
        runs: budget of each (method, seed), in full runs at the target size.
        pilot_runs: learning rates tried at each pilot size.
        strategy: schedule whose lr external methods search.
        engine: name of the engine.

    Examples:
        >>> from metaopt_hpo import ComparisonPlan
        >>> plan = ComparisonPlan(
        ...     workload="text-lm", methods=("grid", "metaoptimize"), seeds=(0, 1, 2), size=1e6, pilot_sizes=(),
        ...     tokens=1e8, batch=1e4, lr_bounds=(1e-3, 1e-1), runs=5, pilot_runs=1,
        ... )
        >>> plan.engine
        'optuna'
        >>> ComparisonPlan.from_json(plan.to_json()) == plan
        True
    """

    workload: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    size: float
    pilot_sizes: tuple[float, ...]
    tokens: float
    batch: float
    lr_bounds: tuple[float, float]
    runs: int
    pilot_runs: int
    strategy: str = "wsd"
    engine: str = "optuna"

    def __post_init__(self) -> None:
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise ValueError(f"methods must be at least one and distinct, got {self.methods!r}")
        for name in self.methods:
            method_named(name)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be at least one and distinct, got {self.seeds!r}")
        low, high = self.lr_bounds
        if not 0 < low < high:
            raise ValueError(f"lr_bounds must be 0 < low < high, got {self.lr_bounds!r}")
        for field in ("runs", "pilot_runs"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)!r}")
        for field, values in (
            ("size", [self.size]),
            ("tokens", [self.tokens]),
            ("batch", [self.batch]),
            ("pilot_sizes", self.pilot_sizes),
            ("lr_bounds", self.lr_bounds),
        ):
            if not all(0 < v < math.inf for v in values):
                raise ValueError(f"{field} must be finite and > 0, got {getattr(self, field)!r}")
        if any(s >= self.size for s in self.pilot_sizes):
            raise ValueError(
                f"pilot sizes must be below the target size {self.size:g}, got {self.pilot_sizes!r}"
            )
        if "law" in self.methods and len(self.pilot_sizes) < 3:
            raise ValueError(
                f"method 'law' fits a law to smaller models and needs at least three pilot sizes, "
                f"got {len(self.pilot_sizes)}"
            )

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self.__dict__.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ComparisonPlan:
        """From `to_json`.

        Raises:
            ValueError: a field is missing, of a wrong type, or out of range.
        """
        text = json.dumps({k: v for k, v in data.items() if k in cls.__dataclass_fields__})
        return TypeAdapter(cls).validate_json(text, strict=True)
