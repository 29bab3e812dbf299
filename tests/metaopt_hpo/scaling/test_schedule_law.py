"""The multi-power law: recovers known curves, predicts unseen schedules, and refuses what says nothing of decay."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from metaopt_hpo.scaling import LawRefused, ScheduledCurve, ScheduleLaw, fit_schedule_law

TRUTH = ScheduleLaw(2.6, 0.6, 0.45, 500.0, 0.5, 0.6, 0.6, noise=0.0)
STEPS = np.arange(500, 12_001, 100, dtype=float)


def schedules(steps: NDArray[np.float64] = STEPS, peak: float = 3e-4) -> dict[str, NDArray[np.float64]]:
    """Learning rates at each step."""
    way = steps / steps[-1]
    return {
        "constant": np.full(steps.size, peak),
        "cosine": peak * (0.1 + 0.45 * (1 + np.cos(np.pi * way))),
        "linear": peak * (1 - 0.95 * way),
        "wsd": peak * np.where(way < 0.8, 1.0, 1 - 0.9 * (way - 0.8) / 0.2),
        "two-stage": peak * np.where(way < 0.5, 1.0, 0.3),
    }


def curve(
    law: ScheduleLaw,
    lr: NDArray[np.float64],
    *,
    noise: float = 0.0,
    steps: NDArray[np.float64] = STEPS,
    seed: int = 0,
) -> ScheduledCurve:
    """A run of that truth."""
    rng = np.random.default_rng(seed)
    return ScheduledCurve(steps, law.predict(steps, lr) * np.exp(noise * rng.standard_normal(steps.size)), lr)


@pytest.mark.parametrize("held_out", ["linear", "wsd", "two-stage"])
def test_unseen_schedules_end_where_predicted(held_out: str) -> None:
    rates = schedules()
    law = fit_schedule_law(
        [curve(TRUTH, rates[k], noise=1e-3, seed=i) for i, k in enumerate(("constant", "cosine"))]
    )
    assert law.end(STEPS, rates[held_out]) == pytest.approx(TRUTH.end(STEPS, rates[held_out]), rel=1.5e-3)


def test_a_longer_run_of_a_fitted_schedule() -> None:
    longer = np.arange(500, 36_001, 300, dtype=float)
    law = fit_schedule_law([curve(TRUTH, schedules()[k]) for k in ("constant", "cosine")])
    lr = schedules(longer)["cosine"]
    assert law.end(longer, lr) == pytest.approx(TRUTH.end(longer, lr), rel=3e-3)


def test_a_smaller_models_law_makes_one_constant_curve_enough() -> None:
    larger = ScheduleLaw(2.2, 0.7, 0.45, 520.0, 0.45, 0.6, 0.6, noise=0.0)
    rates = schedules()
    flat = curve(larger, rates["constant"])
    with pytest.raises(LawRefused, match="no curve's lr falls"):
        fit_schedule_law([flat])
    law = fit_schedule_law([flat], prior=TRUTH)
    assert law.end(STEPS, rates["linear"]) == pytest.approx(larger.end(STEPS, rates["linear"]), rel=5e-3)


@pytest.mark.parametrize("factor", [1e-2, 1e2])
def test_the_unit_of_the_learning_rate_changes_nothing(factor: float) -> None:
    """SGD's lr of 0.1 and Adam's of 3e-4 are the same curve."""
    rates = schedules()
    seen = [curve(TRUTH, rates[k], noise=1e-3, seed=i) for i, k in enumerate(("constant", "cosine"))]
    scaled = [ScheduledCurve(c.steps, c.loss, factor * c.lr) for c in seen]
    one = fit_schedule_law(seen).end(STEPS, rates["wsd"])
    assert fit_schedule_law(scaled).end(STEPS, factor * rates["wsd"]) == pytest.approx(one, rel=5e-4)


def test_ten_times_as_many_reports_say_the_same() -> None:
    dense = np.arange(500, 12_001, 10, dtype=float)
    few, many = (
        fit_schedule_law([curve(TRUTH, schedules(steps)[k], steps=steps) for k in ("constant", "cosine")])
        for steps in (STEPS, dense)
    )
    lr = schedules()["wsd"]
    assert many.end(STEPS, lr) == pytest.approx(few.end(STEPS, lr), rel=1e-3)


def test_single_bad_reports_hardly_count() -> None:
    rates = schedules()
    seen = [curve(TRUTH, rates[k]) for k in ("constant", "cosine")]
    losses = seen[1].loss.copy()
    losses[20] *= 3.0
    law = fit_schedule_law([seen[0], ScheduledCurve(STEPS, losses, rates["cosine"])])
    assert law.end(STEPS, rates["wsd"]) == pytest.approx(TRUTH.end(STEPS, rates["wsd"]), rel=3e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": [1, 1], "loss": [3, 3], "lr": [1, 1]}, "steps must ascend"),
        ({"steps": [1, 2], "loss": [3], "lr": [1, 1]}, "loss must hold one value a step"),
        ({"steps": [1, 2], "loss": [3, np.nan], "lr": [1, 1]}, "loss must hold positive"),
        ({"steps": [1, 2], "loss": [3, 3], "lr": [1, -1]}, "lr must hold finite"),
        ({"steps": [1], "loss": [3], "lr": [1]}, "equally long lists of at least two"),
        ({"steps": [1, 2], "loss": [3, 3], "lr": [1, 1], "before": -1.0}, "before must be"),
    ],
)
def test_bad_curves(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduledCurve(**options)  # type: ignore[arg-type]


def test_too_few_reports() -> None:
    with pytest.raises(LawRefused, match="at least 20 reports"):
        fit_schedule_law([ScheduledCurve([1, 2, 3], [3, 2, 1], [3, 2, 1])])


def test_a_schedule_of_every_step_of_a_long_run() -> None:
    every = np.arange(200_000, dtype=float)
    sparse = np.arange(0, 200_000, 500, dtype=float)
    lr = schedules(every)["cosine"]
    assert TRUTH.end(every, lr) == pytest.approx(TRUTH.end(sparse, schedules(sparse)["cosine"]), rel=1e-3)


def test_curves_from_the_first_step() -> None:
    """A warm-up from 0: nothing has been learned at step 0, whatever the law."""
    steps = np.arange(0, 12_001, 100, dtype=float)
    warm = np.minimum(steps / 1000, 1.0)
    rates = {k: warm * lr for k, lr in schedules(steps).items()}
    assert np.isinf(TRUTH.predict(steps, rates["constant"])[0])
    seen = []
    for k in ("constant", "cosine"):
        losses = TRUTH.predict(steps, rates[k])
        losses[0] = 11.0
        seen.append(ScheduledCurve(steps, losses, rates[k]))
    law = fit_schedule_law(seen)
    assert law.end(steps, rates["wsd"]) == pytest.approx(TRUTH.end(steps, rates["wsd"]), rel=3e-3)
