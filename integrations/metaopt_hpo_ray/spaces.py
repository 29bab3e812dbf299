"""Values of one trial from one of Tune's parameter spaces, from a generator of our own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.search.sample import Domain, Function


def whole(value: float) -> float | int:
    """Sizes and tokens as whole numbers where they are."""
    return int(value) if value == math.floor(value) and value < 2**53 else value


def resolve(space: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Values for the rest of the parameter space: plain ones first, then those that depend on others."""
    out: dict[str, Any] = {}
    waiting: dict[str, Function] = {}
    for key, value in space.items():
        if isinstance(value, Function):
            waiting[key] = value
        elif isinstance(value, Domain):
            state = np.random.RandomState(int(rng.integers(2**31)))
            out[key] = value.sample(random_state=state)
        elif isinstance(value, Mapping):
            out[key] = resolve(value, rng)
        else:
            out[key] = value
    for key, value in waiting.items():
        out[key] = value.func(SimpleNamespace(config=out))
    return out
