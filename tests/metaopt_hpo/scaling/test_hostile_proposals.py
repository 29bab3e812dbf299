"""`propose` with any runs and any context: a configuration within bounds, the same each time, or one sentence."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling.policy import Config, Context, Proposal, propose
from metaopt_hpo.scaling.policy.points import Runs
from metaopt_hpo.scaling.policy.proposing import propose_next
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable

PILOTS = ((1e6, 2e7), (2e6, 4e7), (4e6, 8e7))
TARGET = (1.6e7, 3.2e8)
odd = st.sampled_from([10**400, 1e308, 5e-324, -1.0, 0.0, math.nan, math.inf, -math.inf, 1e-300, True])
numbers = st.one_of(st.floats(), odd)
cells = st.one_of(st.sampled_from([*PILOTS, TARGET]), st.tuples(numbers, numbers))
rates = st.one_of(st.floats(1e-4, 1e-1), numbers)
losses = st.one_of(st.floats(1.5, 4.0), numbers)
rows = st.lists(st.tuples(cells, st.one_of(st.just(1e4), numbers), rates, losses), max_size=24)
ranges = st.one_of(
    st.just((1e-4, 1e-1)), st.tuples(numbers, numbers), st.floats(1e-9, 1.0).map(lambda v: (v, v))
)
contexts = st.fixed_dictionaries(
    {
        "target": st.one_of(st.just(TARGET), cells),
        "candidates": st.one_of(st.just(PILOTS), st.lists(cells, max_size=4).map(tuple)),
        "lr": ranges,
        "batch": st.one_of(st.just((1e4, 1e4)), st.just((1e3, 1e5)), ranges),
        "budget": st.one_of(st.just(math.inf), numbers),
        "seed": st.integers(0, 2**32),
    }
)
states = st.sampled_from(["complete", "complete", "pruned", "diverged", "failed", "running"])
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


def told(call: Any) -> Any:
    """What it gives; None where it refuses in one sentence."""
    try:
        return call()
    except (MetaOptError, ValueError) as raised:
        error = raised
    assert isinstance(error, MetaOptError) or type(error) is ValueError, repr(error)
    assert str(error)
    assert "\n" not in str(error)
    return None


def check(runs: list[Any], state: list[Any], given_: dict[str, Any], under_way: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = told(lambda: Context(**given_))
        if context is None:
            return
        rows = [(*cell, batch, lr, loss) for cell, batch, lr, loss in runs]
        running = [told(lambda r=r: Config(r[0], r[1], r[2], r[3])) for r in rows[:under_way]]
        context = told(lambda: Context(**given_, running=tuple(c for c in running if c is not None)))
        # as an integration has them, unchecked
        sound(lambda: propose_next(Runs.of([tuple(map(_float, r)) for r in rows]), context), context)
        table = told(
            lambda: TrialTable.from_records(
                [
                    TrialRecord(*r, state=s, trial=str(i))
                    for i, (r, s) in enumerate(zip(rows, state, strict=False))
                ]
            )
        )
        sound(lambda: propose(table, context), context)


def _float(value: Any) -> float:
    return math.inf if value == 10**400 else float(value)


def sound(call: Any, context: Context) -> None:
    first, again = told(call), told(call)
    assert repr(first) == repr(again)
    if first is None:
        return
    assert isinstance(first, Proposal)
    c = first.config
    assert context.lr[0] * (1 - 1e-9) <= c.lr <= context.lr[1] * (1 + 1e-9)
    assert context.batch[0] * (1 - 1e-9) <= c.batch <= context.batch[1] * (1 + 1e-9)
    assert (c.size, c.tokens) in {*context.candidates, context.target}
    assert first.reason


drawn = (rows, st.lists(states, max_size=24), contexts, st.integers(0, 3))


@given(*drawn)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=QUIET)
def test_a_proposal_is_sound_or_one_sentence(a: list[Any], b: list[Any], c: dict[str, Any], d: int) -> None:
    check(a, b, c, d)


@pytest.mark.sweep
@given(*drawn)
@settings(max_examples=2000, deadline=None, suppress_health_check=QUIET)
def test_many_proposals_are(a: list[Any], b: list[Any], c: dict[str, Any], d: int) -> None:
    check(a, b, c, d)
