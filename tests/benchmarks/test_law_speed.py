"""Speed of laws: fit of 2,000 trials, refit after one more, forecast, verdict from a cached law.

On a shared machine measure processor time too: `pytest tests/benchmarks/test_law_speed.py
--benchmark-timer=time.process_time`.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from metaopt_hpo.scaling import Law, fit
from metaopt_hpo.trials.table import TrialTable

CONFIG = {"lr": 1e-3, "batch": 1e6}


@pytest.fixture(scope="module")
def table() -> TrialTable:
    rng = np.random.default_rng(0)
    rows = []
    for n in np.geomspace(3e7, 4e8, 5):
        for d in np.geomspace(2e9, 1e11, 5):
            for lr in 0.003 * np.exp(np.linspace(-1.8, 1.8, 10)):
                for b in 5e5 * np.exp(np.linspace(-1.6, 1.6, 8)):
                    x = math.log(lr / (0.003 * (n / 1e8) ** -0.4 * (d / 1e10) ** 0.2))
                    y = math.log(b / (5e5 * (d / 1e10) ** 0.5))
                    floor = 1.7 + 0.6 * (n / 1e8) ** -0.3 + 0.4 * (d / 1e10) ** -0.3
                    excess = 0.02 * x * x - 0.006 * x * y + 0.015 * y * y + 2e-3 * rng.standard_normal()
                    rows.append(
                        {"size": n, "tokens": d, "batch": b, "lr": lr, "loss": floor * math.exp(excess)}
                    )
    return TrialTable.from_frame(pd.DataFrame(rows))


@pytest.fixture(scope="module")
def law(table: TrialTable) -> Law:
    return fit(table)


def test_fit_of_2000_trials(benchmark: BenchmarkFixture, table: TrialTable) -> None:
    assert benchmark.pedantic(fit, args=(table,), rounds=2).trials == 2000


def test_refit(benchmark: BenchmarkFixture, table: TrialTable, law: Law) -> None:
    assert benchmark(law.refit, table).trials == 2000


def test_forecast_of_a_new_cell(benchmark: BenchmarkFixture, law: Law) -> None:
    sizes = iter(np.linspace(1e8, 1e9, 10_000_000))
    assert benchmark(lambda: law.forecast(size=float(next(sizes)), tokens=1e11, **CONFIG)).sd > 0


def test_verdict_from_a_cached_law(benchmark: BenchmarkFixture, law: Law) -> None:
    v = benchmark(lambda: law.verdict(size=1e9, tokens=1e11, incumbent=2.3, **CONFIG))
    assert v.action in {"launch", "stop"}
