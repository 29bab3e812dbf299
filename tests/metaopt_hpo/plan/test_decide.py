"""What a plan decides: which pilots, at which rates, and what they say of the target's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from metaopt_hpo.plan import decide
from metaopt_hpo.plan.api import Plan
from metaopt_hpo.plan.costs import Budget
from metaopt_hpo.plan.estimate import Estimate
from metaopt_hpo.plan.run import run
from metaopt_hpo.trials.record import TrialRecord

pytest.importorskip("optuna")

Make = Callable[..., Plan]


def test_a_round_keeps_to_the_budget_and_buys_no_pilot_that_the_others_make_idle(make_plan: Make) -> None:
    plan = make_plan()
    for budget in (0.001, 0.01, 0.05, 0.5):
        held = dataclasses.replace(plan, budget=Budget(kind="share", amount=budget, text="some"))
        chosen = [c.pilot for c in decide.together(held, [], [], 9) if c.pilot is not None]
        assert sum(p.cost.flops for p in chosen) <= budget * plan.target_cost.flops * (1 + 1e-9)
        assert [p.name for p in chosen] == [p.name for p in plan.pilots][: len(chosen)]
    one = decide.together(plan, [], [], 1)
    assert one[0] == decide.choose(plan, [], [])


@pytest.mark.parametrize("off", [0.05, 0.3, 1.0, 4.0, 25.0])
def test_a_cells_rates_bracket_its_optimum(off: float) -> None:
    """Wherever the law puts the first run, a few more lie to both sides of the best rate."""
    best, tried = 1e-2, []
    for _ in range(9):
        lr, _ = decide._next_rate(tried, best * off)
        assert all(abs(math.log(lr / other)) > 1e-3 for other, _ in tried)
        tried.append((lr, math.log(lr / best) ** 2 if lr < 8 * best else math.inf))
    lowest = min(tried, key=lambda t: t[1])[0]
    assert min(t[0] for t in tried) < lowest < max(t[0] for t in tried)
    assert abs(math.log(lowest / best)) <= math.log(2) / 2 + 1e-9
    # under way, nothing says which side is better: to either side in turn
    assert decide._next_rate([(1e-3, math.nan), (2e-3, math.nan)], 5e-3)[0] == pytest.approx(5e-4)


@pytest.mark.parametrize(("low", "high"), [(1e-3, 2e-2), (1e-2, 1e-1), (8e-3, 1.4e-2), (9.9e-3, 1.01e-2)])
def test_a_cells_rates_keep_to_the_range_and_none_is_run_twice(low: float, high: float) -> None:
    for best in (low / 5, math.sqrt(low * high), high * 5):
        tried: list[tuple[float, float | None]] = []
        for _ in range(6):
            lr, _ = decide._next_rate(tried, math.sqrt(low * high), low, high)
            assert low <= lr <= high
            assert all(abs(math.log(lr / other)) > 1e-6 for other, _ in tried)
            tried.append((lr, math.log(lr / best) ** 2))


def test_a_failed_rate_is_no_bad_one_unless_it_fails_again() -> None:
    """One that failed lies beyond the best: it is tried again, and taken for too high where it fails once more."""
    tried: list[tuple[float, float | None]] = [(1e-3, 3.0), (2e-3, 2.5), (4e-3, None)]
    again = decide._next_rate(tried, 1e-3)[0]
    assert again == pytest.approx(4e-3)
    between = decide._next_rate([*tried, (4e-3, None)], 1e-3)[0]
    assert 1e-3 < between < 4e-3
    assert decide._next_rate([(1e-3, None)], 1e-3)[0] != pytest.approx(1e-3)


def test_the_law_learns_what_found_rates_are_off_by() -> None:
    def record(size: float, lr: float, loss: float, own: bool) -> TrialRecord:
        return TrialRecord(
            size=size, tokens=1e5, batch=100.0, lr=1e-3 if own else lr, loss=loss,
            strategy="metaoptimize" if own else "wsd", tuning="self" if own else "external",
            found_lr=lr if own else math.nan,
        )  # fmt: skip

    def best(size: float) -> float:
        return 0.02 * (size / 1e4) ** -0.3

    sizes = (1e4, 3e4, 1e5)
    own = [record(s, 0.5 * best(s), 2.0, True) for s in sizes]
    grid = [
        record(s, best(s) * f, 2.0 * math.exp(0.05 * math.log(f) ** 2), False)
        for s in sizes
        for f in (0.5, 1.0, 2.0)
    ]
    alone = Estimate(own, 1e6, 1e5, lr=(1e-4, 1e-1))
    both = Estimate([*own, *grid], 1e6, 1e5, lr=(1e-4, 1e-1))
    assert both.offset[0] == pytest.approx(math.log(0.5), abs=0.3)  # the prior draws it to zero
    assert abs(math.log(both.rate.value / best(1e6))) < abs(math.log(alone.rate.value / best(1e6)))
    assert both.rate.sd < alone.rate.sd
    # more runs never leave more unknown, and order does not matter
    assert alone.sd_after([(3e4, 1e5, True)]) < alone.rate.sd
    assert Estimate([*grid[::-1], *own], 1e6, 1e5, lr=(1e-4, 1e-1)).rate.value == pytest.approx(
        both.rate.value
    )


def test_decisions_are_a_function_of_the_records(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan()
    records = run(plan, tmp_path / "plan", most=3).table.records()
    done = [r.study for r in records]
    assert decide.choose(plan, done, records) == decide.choose(plan, done, list(records))
