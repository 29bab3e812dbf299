"""Which cell is run next: pilots while they save more than they cost, and then the target."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaopt_hpo.scaling.policy import Config, Context, next_cell, propose_at, propose_next
from metaopt_hpo.scaling.policy.design import USUAL_CURVATURE, Design, good_within, target_runs
from metaopt_hpo.scaling.policy.points import Runs

TARGET = (4e8, 5e10)
PILOTS = tuple((n, d) for n in (5e7, 1e8, 2e8) for d in (2e9, 8e9, 5e10))

counts = st.dictionaries(st.sampled_from(PILOTS), st.integers(0, 12))


@settings(deadline=None)
@given(counts, st.sampled_from(PILOTS), st.integers(1, 6))
def test_a_run_never_makes_the_target_less_known(
    held: dict[tuple[float, float], int], cell, more: int
) -> None:
    before = Design(held, TARGET, 1.0).variance(TARGET)
    after = Design(held | {cell: held.get(cell, 0) + more}, TARGET, 1.0).variance(TARGET)
    assert after <= before * (1 + 1e-9)


@settings(deadline=None, max_examples=25)
@given(counts)
def test_pilots_end_and_cost_less_than_searching_the_target(held: dict[tuple[float, float], int]) -> None:
    running = Counter(held)
    spent = 0.0
    for _ in range(400):
        cell = Design(running, TARGET, 1.0).best_pilot(PILOTS, two=True)
        if cell is None:
            break
        running[cell] += 1
        spent += cell[0] * cell[1] / (TARGET[0] * TARGET[1])
    else:
        pytest.fail("pilots never end")
    assert spent < target_runs(
        Design({}, TARGET, 1.0).variance(TARGET), good_within(USUAL_CURVATURE), two=True
    )


@pytest.mark.parametrize("odd", [5e-324, 1.7e308])
def test_runs_of_absurd_sizes_count_as_far_away(odd: float) -> None:
    for cell in ((odd, 5e10), (4e8, odd)):
        variance = Design({cell: 3}, TARGET, 1.0).variance(TARGET)
        assert 0 < variance <= Design({}, TARGET, 1.0).variance(TARGET) * (1 + 1e-9)


def test_dear_pilots_are_not_bought() -> None:
    near = ((3.9e8, 5e10),)
    assert Design({}, TARGET, 0.3).best_pilot(near, two=False) is None
    assert Design({}, TARGET, 1.0).best_pilot(((5e7, 2e9),), two=True) == (5e7, 2e9)


def test_a_budget_that_pays_for_the_target_only_runs_it() -> None:
    cost = 6 * TARGET[0] * TARGET[1]
    context = Context(
        target=TARGET, candidates=PILOTS, lr=(1e-4, 1e-1), batch=(1e5, 4e6), budget=1.0001 * cost
    )
    assert next_cell(Runs.of([]), context) == TARGET


def test_the_same_runs_in_any_order_of_asking_give_the_same_proposal() -> None:
    context = Context(target=TARGET, candidates=PILOTS, lr=(1e-4, 1e-1), batch=(1e5, 4e6), seed=3)
    rows: list[tuple[float, float, float, float, float]] = []
    for i in range(12):
        c = propose_next(Runs.of(rows), context).config
        rows.append((c.size, c.tokens, c.batch, c.lr, 3.0 - 0.01 * i))
    a, b = propose_next(Runs.of(rows), context), propose_next(Runs.of(rows[::-1]), context)
    assert (a.config.size, a.config.tokens) == (b.config.size, b.config.tokens)
    assert a.config.lr == pytest.approx(b.config.lr, rel=1e-6)


def test_workers_that_ask_at_once_are_sent_to_different_places() -> None:
    context = Context(target=TARGET, candidates=PILOTS, lr=(1e-4, 1e-1), batch=(1e5, 4e6))
    found: list[Config] = [
        propose_at(Runs.of([]).with_unfinished(PILOTS[0], k), PILOTS[0], context, bowl=None) for k in range(4)
    ]
    assert len({c.lr for c in found}) == 4
