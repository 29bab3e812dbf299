"""What is known of a search: runs and bowls for proposals, what was spent, and the law in force."""

from __future__ import annotations

import math

import pytest

from metaopt_hpo.scaling.policy.past import Past
from metaopt_hpo.scaling.policy.refits import Refits
from metaopt_hpo.trials.record import TrialRecord


def record(size: float, u: float, **fields: object) -> TrialRecord:
    values: dict[str, object] = {
        "size": size,
        "tokens": 20 * size,
        "batch": 65536.0,
        "lr": 0.8 * size**-0.3 * math.exp(u),
        "loss": 1.7 + 300 * size**-0.35 + 0.03 * u * u,
        "strategy": "wsd",
    }
    return TrialRecord(**{**values, **fields})  # type: ignore[arg-type]


def filled() -> Past:
    past = Past()
    for i, (size, u) in enumerate((s, u) for s in (1e6, 4e6, 1.6e7) for u in (-1.5, -0.5, 0.5, 1.5)):
        past.add((i,), record(size, u))
    return past


def test_runs_of_another_strategy_teach_nothing_and_those_without_a_loss_count() -> None:
    past = filled()
    row = (1e6, 2e7, 65536.0, 1e-3, math.nan)
    past.unfinished["p"] = (row, "wsd")
    past.add((99,), record(1e6, 0.0, strategy="cosine"))
    past.add((100,), record(1e6, 0.0, tuning="self"))
    runs, bowl = past.runs("wsd", [(row, ""), (row, "cosine")])
    assert (runs.n, runs.done().n) == (14, 12)
    assert bowl is not None
    assert past.runs("")[0].n == 14
    assert Past().runs("")[1] is None


def test_a_failed_trial_is_a_run_and_made_again_it_is_the_same_run() -> None:
    past = filled()
    row = (1e6, 2e7, 65536.0, 1e-3, math.nan)
    past.failed[1] = past.failed[2] = (row, "wsd")
    assert past.runs("wsd")[0].n == 13
    assert past.runs("wsd", [(row, "wsd")])[0].n == 13
    past.add((99,), record(1e6, 0.0, lr=1e-3))
    assert past.runs("wsd")[0].n == 13
    assert past.runs("wsd")[0].done().n == 13


def test_a_source_teaches_and_costs_nothing() -> None:
    alone, lent = Past(), Past(sources=[filled()])
    assert lent.runs("wsd")[0].n == 12
    assert lent.spent() == alone.spent() == (0.0, 0.0)
    assert filled().spent()[1] == pytest.approx(4 * 20 * (1e6 + 4e6 + 1.6e7))
    assert lent.refit(Refits()).law is not None
    assert alone.refit(Refits()).law is None
    assert alone.refusal
