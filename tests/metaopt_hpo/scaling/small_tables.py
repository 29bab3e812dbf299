"""Tables of a few small sizes whose law is known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from metaopt_hpo.trials.table import TrialTable


def tiny(noise: float, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for n in (5e3, 2e4, 8e4, 2e5):
        for s in (0, 1):
            for lr in np.geomspace(1e-3, 1e-1, 5):
                x = math.log(lr / (0.02 * (n / 2e4) ** -0.3))
                loss = (1.5 + 1.0 * (n / 2e4) ** -0.2) * math.exp(
                    0.03 * x * x + noise * rng.standard_normal()
                )
                rows.append({"size": n, "tokens": 20 * n, "batch": 512.0, "lr": lr, "loss": loss, "seed": s})
    return pd.DataFrame(rows)


def widths(at: tuple[float, ...], noise: float, seed: int = 0) -> TrialTable:
    """Three sizes of eight lr, one batch, one number of tokens; `at` holds each size's ln lr*."""
    rng = np.random.default_rng(seed)
    rows = []
    for n, best in zip((1e6, 4e6, 1.6e7), at, strict=True):
        for x in np.arange(-3.5, 4.0) * math.log(2):
            loss = 3.0 * (n / 1e6) ** -0.05 * math.exp(0.02 * (x - best) ** 2 + noise * rng.standard_normal())
            rows.append({"size": n, "tokens": 1e8, "batch": 1e5, "lr": 1e-3 * math.exp(x), "loss": loss})
    return TrialTable.from_frame(pd.DataFrame(rows))
