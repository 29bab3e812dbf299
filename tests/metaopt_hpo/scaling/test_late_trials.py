"""Workers that hear of trials in another order decide alike."""

from __future__ import annotations

import math

import numpy as np

from metaopt_hpo.scaling.policy import History, Refits
from metaopt_hpo.trials.record import TrialRecord


def record(i: int) -> TrialRecord:
    n, u = [1e6, 4e6, 16e6, 64e6][i % 4], np.random.default_rng(i).uniform(-1.5, 1.5)
    lr, loss = 0.8 * n**-0.3 * math.exp(u), 1.7 + 300 * n**-0.35 + 0.03 * u * u
    return TrialRecord(size=n, tokens=20 * n, batch=65536, lr=lr, loss=loss, trial=str(i))


def test_a_trial_that_is_heard_of_late_gives_the_law_of_one_that_was_not() -> None:
    laws = []
    for order in (range(24), [*(i for i in range(24) if i != 5), 5]):
        history, refits = History(), Refits(background=False)
        for i in order:
            history.add((i, i), record(i))
            if len(history.finished) >= 22:
                refits.in_force(history)
        # the law of the step before is of the first so many trials, and this one is among them
        law = refits.in_force(history).law
        assert law is not None
        laws.append(law.to_json())
        assert history.late == (order[-1] == 5)
    assert laws[0] == laws[1]
