"""Where the target is run again: through the law while its runs agree with it, else as plain search would."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from metaopt_hpo.scaling.forms.surface import Surface
from metaopt_hpo.scaling.policy.design import GOOD_LOSS
from metaopt_hpo.scaling.policy.points import MADE, Box, FittedBowl, Runs, fitted_bowl
from metaopt_hpo.scaling.policy.target_model import CONSIDERED, TargetModel
from metaopt_hpo.scaling.policy.target_points import target_point

BOWL = Surface(np.zeros(1), np.zeros(1), np.array([0.02, 0.0, 0.02]), 0.0, True)
REACH = math.sqrt(2 * GOOD_LOSS / 0.02)
CELL = (1e9, 2e10)
BOX = Box((math.exp(-4), math.exp(4)), (1.0, 1.0))
SQUARE = Box((math.exp(-4), math.exp(4)), (math.exp(-4), math.exp(4)))


class Here(FittedBowl):
    """A law whose optimum at the target is at lr 1 and batch 1."""

    def __init__(self) -> None:
        super().__init__(BOWL, None)  # type: ignore[arg-type]

    def centre(self, cell: tuple[float, float]) -> tuple[float, float]:
        return 0.0, 0.0


PILOTS = [(n, d, 1.0, math.exp(x), 2.0) for n in (1e7, 1e8, 3e8) for d in (2e9, 2e10) for x in range(-2, 3)]
"""So many that the design holds the target's optimum to be known within some 0.3."""


def search(
    loss: Callable[[float], float], runs: int, seed: int = 0, asked: Callable[[float], float] = float
) -> list[float]:
    """ln lr of the target's runs, one after the other."""
    rows, out = list(PILOTS), []
    for _ in range(runs):
        lr, batch = target_point(Runs.of(rows), CELL, BOX, Here(), seed)
        x = asked(math.log(lr))
        out.append(x)
        rows.append((*CELL, batch, math.exp(x), math.exp(loss(x))))
    return out


@pytest.mark.parametrize("truth", [-0.6, 0.0, 0.6])
def test_runs_that_agree_with_the_law_are_read_through_it(truth: float) -> None:
    at = np.array([[0.0, 0.0], [0.6, 0.0], [-0.6, 0.0]])
    z = 0.7 + BOWL.excess(at[:, 0] - truth, at[:, 1])
    model = TargetModel(BOWL, at, z, 0.4, 1e-3)
    line = np.column_stack([np.linspace(-3, 3, 301), np.zeros(301)])
    assert line[int(np.argmin(model.expected(line))), 0] == pytest.approx(truth, abs=0.1)
    far = model.expected(line) - 0.7 - BOWL.excess(line[:, 0] - truth, line[:, 1])
    assert np.abs(far).max() < 0.02  # a bowl as the law has it, far beyond the runs


@pytest.mark.parametrize("truth", [-0.5, 0.5])
def test_a_law_that_is_nearly_right_takes_few_runs(truth: float) -> None:
    found = search(lambda x: 0.7 + 0.01 * (x - truth) ** 2, 4)
    assert found[0] == pytest.approx(0.0, abs=0.05)
    assert min(abs(x - truth) for x in found) < REACH


@pytest.mark.parametrize("seed", range(4))
def test_a_law_that_is_wrong_does_not_keep_the_search(seed: int) -> None:
    """It has a bowl; the loss has a plain, a hill, and behind it a narrow dip, five of the law's deviations away."""

    def loss(x: float) -> float:
        return 0.7 + 0.03 * math.exp(-((x - 1.0) ** 2)) - 0.08 * math.exp(-(((x - 2.6) / 0.5) ** 2))

    found = search(loss, 24, seed)
    assert min(abs(x - 2.6) for x in found) < 0.2


def test_pilots_that_no_quadratic_fits_do_not_make_the_target_noisy() -> None:
    """Their losses zigzag by 4 %; those of the target follow the law's optimum exactly, and are believed."""

    def rows(zigzag: float) -> list[tuple[float, float, float, float, float]]:
        return [
            (n, d, 1.0, math.exp(x), math.exp(0.7 + 0.02 * (x - 0.1) ** 2 + zigzag * (-1) ** i))
            for n in (1e7, 1e8, 3e8)
            for d in (2e9, 2e10)
            for i, x in enumerate(np.linspace(-3, 3, 9))
        ]

    def next_of_target(zigzag: float) -> float:
        bowl = fitted_bowl(Runs.of(rows(0.0)))
        noisy = fitted_bowl(Runs.of(rows(zigzag)))
        assert bowl is not None
        assert noisy is not None
        mixed = replace(noisy, surface=bowl.surface, fit=bowl.fit)  # the same law of noisier pilots
        own = [(*CELL, 1.0, math.exp(x), math.exp(0.7 + 0.02 * (x - 1.2) ** 2)) for x in (-1.0, 0.0, 0.5)]
        return target_point(Runs.of([*rows(zigzag), *own]), CELL, BOX, mixed, 0)[0]

    assert next_of_target(0.04) == pytest.approx(next_of_target(0.0))


def test_no_run_is_made_twice_and_runs_under_way_are_kept_clear_of() -> None:
    rows = list(PILOTS)
    places = []
    for _ in range(6):  # none of them ends
        lr, batch = target_point(Runs.of(rows), CELL, SQUARE, Here(), 0)
        places.append((math.log(lr), math.log(batch)))
        rows.append((*CELL, batch, lr, math.nan))
    apart = [max(abs(a - c), abs(b - d)) for i, (a, b) in enumerate(places) for c, d in places[:i]]
    assert min(apart) >= MADE
    assert sorted(apart)[0] > 0.2  # not beside each other either


def test_runs_under_way_without_a_place_are_taken_to_be_where_they_would_have_been_proposed() -> None:
    runs = Runs.of(PILOTS)
    first = target_point(runs, CELL, BOX, Here(), 0)
    second = target_point(runs + Runs.of([(*CELL, first[1], first[0], math.nan)]), CELL, BOX, Here(), 0)
    assert target_point(runs.with_unfinished(CELL, 1), CELL, BOX, Here(), 0) == pytest.approx(second)


def test_a_program_that_clips_what_it_is_asked_for_is_still_searched() -> None:
    """Everything above lr 1 runs at 1: the best below is found all the same."""
    found = search(lambda x: 0.7 + 0.01 * (x + 1.5) ** 2, 16, asked=lambda x: min(x, 0.0))
    assert min(abs(x + 1.5) for x in found) < REACH


def test_many_runs_of_the_target_are_thinned_by_rank() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-4, 4, 20 * CONSIDERED)
    rows = [(*CELL, 1.0, math.exp(a), math.exp(0.7 + 0.01 * (a - 0.5) ** 2)) for a in x]
    lr, _ = target_point(Runs.of([*PILOTS, *rows]), CELL, BOX, Here(), 0)
    assert 0 < lr < math.inf
