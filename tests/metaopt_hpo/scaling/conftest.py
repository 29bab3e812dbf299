"""Synthetic tables whose law is known."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from metaopt_hpo.trials.table import TrialTable

# the tests are no package: makes the helper module beside it importable
sys.path.insert(0, str(Path(__file__).parent))

Maker = Callable[..., TrialTable]

LR = (0.003, -0.4, 0.2)
"""lr* = LR[0] · (N/1e8)^LR[1] · (D/1e10)^LR[2]"""
BATCH = (5e5, 0.0, 0.55)


def truth(size: float, tokens: float) -> tuple[float, float, float]:
    """(lr*, batch*, loss*) of the synthetic surface."""
    n, d = size / 1e8, tokens / 1e10
    lr = LR[0] * n ** LR[1] * d ** LR[2]
    batch = BATCH[0] * n ** BATCH[1] * d ** BATCH[2]
    return lr, batch, 1.7 + 0.6 * n**-0.34 + 0.4 * d**-0.3


def synthetic(
    *,
    sizes: tuple[float, ...] = (3e7, 1e8, 3e8),
    tokens: tuple[float, ...] = (3e9, 1e10, 3e10),
    lrs: int = 6,
    batches: int = 5,
    noise: float = 1e-3,
    seed: int = 0,
    span: float = 1.6,
    shift: float = 0.0,
) -> pd.DataFrame:
    """Trials on grids centred (plus `shift` in ln lr) near the middle cell's optimum."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in sizes:
        for d in tokens:
            lr0, b0, floor = truth(n, d)
            mid_lr, mid_b, _ = truth(float(np.median(sizes)), float(np.median(tokens)))
            for u in np.linspace(-span, span, lrs) + shift:
                grid = np.linspace(-span, span, batches) if batches > 1 else [0.0]
                for v in grid:
                    lr, b = mid_lr * np.exp(u), mid_b * np.exp(v)
                    x, y = np.log(lr / lr0), np.log(b / b0)
                    excess = 0.012 * x * x - 0.006 * x * y + 0.010 * y * y if batches > 1 else 0.012 * x * x
                    loss = floor * np.exp(excess + noise * rng.standard_normal())
                    rows.append({"size": n, "tokens": d, "batch": b, "lr": lr, "loss": loss})
    return pd.DataFrame(rows)


@pytest.fixture
def make_table() -> Maker:
    """TrialTable of a synthetic surface; keyword arguments as `synthetic`."""

    def make(**options: object) -> TrialTable:
        return TrialTable.from_frame(synthetic(**options))  # type: ignore[arg-type]

    return make


@pytest.fixture
def true_optimum() -> Callable[[float, float], tuple[float, float, float]]:
    """(lr*, batch*, loss*) at a size and number of tokens."""
    return truth
