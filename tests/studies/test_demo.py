"""What the demo says at its end: compute counts pilots, and others are shown at no more compute than the plan's."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from metaopt_hpo.trials.record import TrialRecord
from studies.demo import outcome


def record(loss: float, cost: float, method: str, lr: float = 1e-3) -> TrialRecord:
    return TrialRecord(size=1.0, tokens=1.0, batch=1.0, lr=lr, loss=loss, cost=cost, method=method)


def results() -> tuple[Any, Any]:
    others = [record(loss, 10.0, name) for name in ("grid", "tpe") for loss in (2.2, 2.05, 1.9)]
    result = SimpleNamespace(
        plan=SimpleNamespace(target_cost=SimpleNamespace(flops=10.0), target=SimpleNamespace(width=96)),
        spent=SimpleNamespace(flops=2.0),
        target=record(2.0, 10.0, "target", lr=5e-3),
        lr=SimpleNamespace(value=5e-3, low=2e-3, high=1e-2),
    )
    compared = SimpleNamespace(
        plan=SimpleNamespace(methods=("grid", "tpe")), table=SimpleNamespace(records=lambda: others)
    )
    return result, compared


def test_others_are_shown_with_no_more_compute_and_with_all() -> None:
    rows = outcome.rows(*results())
    assert [(r.title, r.runs, r.loss) for r in rows[:3]] == [
        ("Plan", 1.2, 2.0),
        ("Grid search", 1.0, 2.2),
        ("Grid search", 3.0, 1.9),
    ]
    assert len(rows) == 5


def test_the_answer_is_first_and_the_section_says_by_how_much() -> None:
    text = outcome.answer(*results())
    assert text.startswith("Train width 96 with lr 0.005 ")
    assert "1.20 target runs" in text
    assert "Grid search 2.2000" in text
    assert "+10.00%" in outcome.section(*results())
    result, compared = results()
    result.target = record(math.nan, 10.0, "target")
    assert math.isnan(outcome.rows(result, compared)[0].loss) or result.target.state == "complete"
