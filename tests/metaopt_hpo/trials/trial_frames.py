"""Small tables of trials as frames."""

from __future__ import annotations

import pandas as pd


def two_trials(**over: object) -> pd.DataFrame:
    base = {
        "size": [1e6, 2e6],
        "tokens": [1e8, 1e8],
        "batch": [1e4, 1e4],
        "lr": [1e-3, 2e-3],
        "loss": [3.0, 2.9],
    }
    return pd.DataFrame(base | over)


def sweep(size: tuple[float, ...] = (3e7, 3e8), tokens: tuple[float, ...] = (3e9, 3e10)) -> pd.DataFrame:
    """An ordinary table: batches doubling from 64 to 512 thousand tokens."""
    return pd.DataFrame(
        [
            {"size": n, "tokens": d, "batch": 2.0**b, "lr": lr, "loss": 3.0 + lr}
            for n in size
            for d in tokens
            for b in range(16, 20)
            for lr in (1e-3, 2e-3)
        ]
    )
