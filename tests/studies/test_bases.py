"""One run over every base rule: what it is compared with."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from studies.one_run.bases import OURS, SCHEDULE, compared


def table(seeds: dict[int, tuple[float, float, float]]) -> pd.DataFrame:
    """A seed's loss of one run, and of schedules at 0.1 and 0.2."""
    key = {"base": "adamw", "job": "teach64", "steps": 2000, "step_size": 0.1}
    rows = []
    for seed, (ours, low, high) in seeds.items():
        for name, lr, loss in ((OURS, 0.0, ours), (SCHEDULE, 0.1, low), (SCHEDULE, 0.2, high)):
            rows.append(key | {"seed": seed, "strategy": name, "lr": lr, "held_out": loss})
    return pd.DataFrame(rows)


def test_three_comparisons() -> None:
    """The rate best in the mean is 0.1; seed 8's own best is 0.2, and so is what seed 7 is judged by."""
    found = compared(table({7: (1.0, 1.0, 2.0), 8: (1.1, 1.1, 1.0)})).set_index("seed")
    assert list(found.tuned_lr) == [0.1, 0.1]
    assert found.excess.to_dict() == pytest.approx({7: 0.0, 8: 0.0})
    assert found.own.to_dict() == pytest.approx({7: 0.0, 8: 10.0})
    assert found.others.to_dict() == pytest.approx({7: -50.0, 8: 0.0})


def test_one_seed_has_no_others() -> None:
    found = compared(table({7: (1.1, 1.0, 2.0)}))
    assert found.own[0] == pytest.approx(10.0) == found.excess[0]
    assert math.isnan(found.others[0])
