"""The callback takes trials with no more than a few of Tune's attributes, whatever kind of number they report."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from metaopt_hpo_ray import JournalCallback


@pytest.mark.parametrize(
    ("result", "options"),
    [
        ({"loss": np.float32(3), "tokens_seen": 2e7}, {}),
        ({"loss": 3.0, "tokens_seen": np.int64(2e7)}, {}),
        ({"eval": {"loss": 3.0}, "tokens_seen": 2e7}, {"metric": "eval/loss"}),
    ],
)
def test_a_trial_without_a_status_that_reached_its_end_is_complete(
    result: dict[str, Any], options: dict[str, Any]
) -> None:
    config = {"size": 1e6, "tokens": 2e7, "batch": 65536, "lr": 1e-2}
    trial: Any = SimpleNamespace(
        trial_id="a", config=config, last_result=result, storage=None, checkpoint=None
    )
    journal = JournalCallback(**options)
    journal.on_trial_result(0, [trial], trial, result)
    journal.on_trial_complete(0, [trial], trial)
    logged = journal.book.entries["a"]
    assert (logged.state, logged.last) == ("complete", (2e7, 3.0))
