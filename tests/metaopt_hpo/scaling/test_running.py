"""Forecasts of running trials: what curves of finished runs say, and silence where nothing is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from metaopt_hpo.scaling import Law, fit
from metaopt_hpo.scaling.fitting.reading import from_table
from metaopt_hpo.scaling.fitting.running import KNOTS, measure_fall
from metaopt_hpo.trials.table import TrialTable

TOKENS = 1e10
AT = TOKENS * np.exp(-KNOTS[::-1])


def truth(size: float, lr: float, batch: float) -> tuple[float, float, float]:
    """(ln final loss, u, v); one number of tokens, so that it is no axis."""
    u = math.log(lr / (0.003 * (size / 1e8) ** -0.4))
    v = math.log(batch / 5e5)
    return math.log(1.7 + 0.6 * (size / 1e8) ** -0.3) + 0.02 * u * u + 0.01 * v * v, u, v


def curve(end: float, u: float, v: float, noise: np.ndarray) -> np.ndarray:
    """A run of large lr or batch falls late."""
    left = np.log(TOKENS / AT)
    return np.asarray(np.exp(end + (0.1 + 0.03 * u + 0.02 * v) * left + noise * np.sqrt(left)))


def make(*, curves: bool, seed: int = 0) -> TrialTable:
    rng, rows = np.random.default_rng(seed), []
    for size in (3e7, 1e8, 3e8):
        for lr in 0.003 * np.exp(np.linspace(-1.2, 1.2, 6)):
            for batch in 5e5 * np.exp(np.linspace(-1.0, 1.0, 4)):
                end, u, v = truth(size, lr, batch)
                end += 1e-3 * rng.standard_normal()
                row: dict[str, object] = {"size": size, "tokens": TOKENS, "batch": batch, "lr": lr}
                row["loss"] = math.exp(end)
                if curves:
                    row["curve_tokens"] = tuple(AT)
                    row["curve_loss"] = tuple(curve(end, u, v, 0.004 * rng.standard_normal(AT.size)))
                rows.append(row)
    return TrialTable.from_frame(pd.DataFrame(rows))


@pytest.fixture(scope="module")
def law() -> Law:
    return fit(make(curves=True), draws=30)


@pytest.fixture(scope="module")
def blind() -> Law:
    return fit(make(curves=False), draws=30)


def test_without_curves_or_tokens_only_a_hopeless_run_is_seen_as_such(blind: Law) -> None:
    """A loss at a tenth of the way lies far above the end of runs, and must not count against its run."""
    config = {"size": 3e8, "tokens": TOKENS, "lr": 2e-3, "batch": 5e5}
    goal = blind.forecast(**config).loss.value
    early = blind.forecast(**config, curve=[(0.1 * TOKENS, 1.3 * goal)])
    assert early.probability_below(1.01 * goal) > 0.3
    late = blind.forecast(**config, curve=[(0.5 * TOKENS, 1.3 * goal)])
    assert late.probability_below(1.01 * goal) < 0.05
    assert blind.forecast(**config, curve=[(TOKENS, 2.5)]).loss.value == pytest.approx(2.5)


def test_curves_make_forecasts_sharper_and_true(law: Law) -> None:
    rng, inside, errors, before = np.random.default_rng(5), [], [], []
    for _ in range(200):
        size, lr, batch = 6e8, 0.002 * math.exp(rng.uniform(-1, 1)), 5e5 * math.exp(rng.uniform(-1, 1))
        end, u, v = truth(size, lr, batch)
        end += 0.006 * rng.standard_normal()  # its own luck, within what the law allows: the curve shows it
        losses = curve(end, u, v, 0.004 * rng.standard_normal(AT.size))
        i = int(rng.integers(6, AT.size - 1))
        seen = list(zip(AT[: i + 1], losses[: i + 1], strict=True))
        f = law.forecast(size=size, tokens=TOKENS, lr=lr, batch=batch, curve=seen)
        errors.append(f.mean - end)
        before.append(law.forecast(size=size, tokens=TOKENS, lr=lr, batch=batch).mean - end)
        inside.append(math.log(f.loss.low) <= end <= math.log(f.loss.high))
    assert np.std(errors) < 0.8 * np.std(before)
    assert 0.8 <= np.mean(inside) <= 0.99


def test_the_fall_knows_that_large_lr_and_batch_win_late(law: Law) -> None:
    assert law.fall is not None
    low, high = law.fall.at(1.0, -1.0, -1.0), law.fall.at(1.0, 1.0, 1.0)
    assert low is not None
    assert high is not None
    assert low[0] == pytest.approx(0.05, abs=0.01)
    assert high[0] == pytest.approx(0.15, abs=0.01)
    assert law.fall.at(2 * float(law.fall.left[-1]), 0.0, 0.0) is None


def test_earlier_than_curves_reach_the_forecast_stays(law: Law) -> None:
    config = {"size": 3e8, "tokens": TOKENS, "lr": 2e-3, "batch": 5e5}
    early = law.forecast(**config, curve=[(TOKENS / 1e4, 9.0)])
    assert early.mean == law.forecast(**config).mean


def test_few_or_broken_curves_give_no_fall(law: Law) -> None:
    table = make(curves=True)
    few = table.select(where=np.arange(len(table)) < 7)
    assert measure_fall(few, from_table(few), law.axes, law.surface) is None
    frame = table.frame.copy()
    frame["curve_loss"] = [tuple(math.nan for _ in AT)] * len(frame)
    broken = TrialTable(frame)
    assert measure_fall(broken, from_table(broken), law.axes, law.surface) is None


def test_only_the_runs_behind_a_law_tell_how_runs_fall(law: Law) -> None:
    """A run that finds its own lr falls in another way; its lr says nothing of it."""
    frame = make(curves=True).frame.assign(strategy="wsd")
    adaptive = frame.assign(
        strategy="metaoptimize", tuning="self", trial=[f"a{i}" for i in range(len(frame))]
    )
    adaptive["curve_loss"] = [tuple(3.0 * v for v in c) for c in adaptive["curve_loss"]]
    both = fit(TrialTable(pd.concat([frame, adaptive], ignore_index=True)), draws=30)
    assert both.fall is not None
    assert law.fall is not None
    assert both.fall.runs == law.fall.runs
    assert both.fall.at(1.0, 0.0, 0.0) == pytest.approx(law.fall.at(1.0, 0.0, 0.0))


def test_the_fall_is_measured_about_each_run_s_own_optimum(law: Law) -> None:
    parts = []
    for i, decay in enumerate((0.05, 0.1, 0.2)):  # the optimal lr goes as 1 / weight decay
        part = make(curves=True, seed=i).frame.assign(params=json.dumps({"weight_decay": decay}))
        part["lr"] *= 0.1 / decay
        parts.append(part.assign(trial=[f"{i}-{j}" for j in range(len(part))]))
    found = fit(TrialTable(pd.concat(parts, ignore_index=True)), extra=("weight_decay",), draws=30).fall
    assert found is not None
    assert law.fall is not None
    assert found.mean[2] == pytest.approx(law.fall.mean[2], abs=2e-3)


def test_the_fall_survives_storage(law: Law) -> None:
    again = Law.from_json(law.to_json())
    assert again.fall is not None
    assert again.fall.at(0.7, 0.3, -0.2) == law.fall.at(0.7, 0.3, -0.2)  # type: ignore[union-attr]
    assert json.loads(law.to_json())["fall"]["runs"] == 72
