"""The learned alternative: what it reads of a run's dynamics, and that it leaves a known surface alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from metaopt_hpo.scaling.fitting.reading import from_table
from metaopt_hpo.trials.table import TrialTable
from studies.laws.learned import ResidualGP, run_dynamics

Maker = Callable[..., TrialTable]


def with_dynamics(table: TrialTable, *, order: int = 0) -> TrialTable:
    """Gradient noise of 2·batch, and curves that lose 0.1 + ln(size)/100 of ln loss per e-fold of tokens."""
    frame = table.frame.sample(frac=1.0, random_state=order).reset_index(drop=True)
    frame["grad_noise"] = 2.0 * frame["batch"]
    parts = np.array([0.1, 0.25, 0.5, 0.9])
    frame["curve_tokens"] = [tuple(t * parts) for t in frame["tokens"]]
    frame["curve_loss"] = [
        tuple(z * parts ** -(0.1 + math.log(n) / 100))
        for z, n in zip(frame["loss"], frame["size"], strict=True)
    ]
    return TrialTable.from_frame(frame)


def test_dynamics_are_those_of_each_trial_whatever_the_order(make_table: Maker) -> None:
    for order in (0, 1):
        table = with_dynamics(make_table(), order=order)
        table.frame.loc[::7, "state"] = "failed"  # left out of the fit
        cells = from_table(table)
        found = run_dynamics(table, cells)
        assert found is not None
        assert found[:, 0] == pytest.approx(np.log(2.0) + cells.y)
        assert found[:, 1] == pytest.approx(0.1 + np.log(cells.size) / 100)


def test_no_dynamics_where_few_runs_recorded_them(make_table: Maker) -> None:
    table = make_table()
    assert run_dynamics(table, from_table(table)) is None


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_a_known_surface_is_left_where_it_is(make_table: Maker, missing: float) -> None:
    table = with_dynamics(make_table(noise=2e-4))
    cells = from_table(table)
    dynamics = run_dynamics(table, cells)
    assert dynamics is not None
    dynamics[np.random.default_rng(0).random(cells.n) < missing] = math.nan
    plain, learned = ResidualGP().fit(cells), ResidualGP().fit(cells, dynamics)
    assert learned(1e9, 1e11) == pytest.approx(plain(1e9, 1e11), abs=0.05)
