"""Where runs of a cell go: inside the box, nowhere twice, and to the optimum though the law be wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metaopt_hpo.scaling.policy import Context, propose_next
from metaopt_hpo.scaling.policy.points import MADE, Box, Runs

PILOTS = tuple((n, 2e9) for n in (5e7, 1e8, 2e8))
TARGET = (4e8, 2e9)
LR = (1e-4, 1e-1)


def drive(optimum: float, count: int, batch: tuple[float, float], seed: int = 0) -> Runs:
    """The policy on a valley whose pilots have their optimum at 3e-4 and whose target has it elsewhere."""
    context = Context(target=TARGET, candidates=(*PILOTS, TARGET), lr=LR, batch=batch, seed=seed)
    rows: list[tuple[float, float, float, float, float]] = []
    while sum(r[0] == TARGET[0] for r in rows) < count:
        c = propose_next(Runs.of(rows), context).config
        x = math.log(c.lr / (optimum if c.size == TARGET[0] else 3e-4))
        rows.append((c.size, c.tokens, c.batch, c.lr, 3.0 + 0.1 * x * x))
    return Runs.of(rows)


@pytest.mark.parametrize("batch", [(1e5, 1e5), (1e5, 4e6)])
@pytest.mark.parametrize("optimum", [1e-5, 3e-4, 1.0])
def test_no_run_is_made_twice_even_where_the_optimum_is_outside_the_box(
    optimum: float, batch: tuple[float, float]
) -> None:
    runs = drive(optimum, 24, batch)
    for cell in (*PILOTS, TARGET):
        there = runs.at(cell)
        points = np.log(np.column_stack([there.lr, there.batch]))
        away = np.abs(points[:, None] - points[None]).max(axis=-1) + 10 * np.eye(len(points))
        assert not len(points) or away.min() >= MADE * 0.5
    assert runs.lr.min() >= LR[0] * (1 - 1e-9)
    assert runs.lr.max() <= LR[1] * (1 + 1e-9)
    assert runs.batch.min() >= batch[0] * (1 - 1e-9)
    assert runs.batch.max() <= batch[1] * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_where_the_law_is_far_off_the_optimum_is_found_all_the_same(seed: int) -> None:
    """It lies two decades above the pilots'."""
    lr = np.log(drive(3e-2, 12, (1e5, 1e5), seed).at(TARGET).lr)
    assert np.abs(lr - math.log(3e-2)).min() < 0.2


def test_points_beyond_a_side_are_mirrored_and_parts_end_at_it() -> None:
    box = Box((1.0, math.e), (2.0, 2.0))
    assert box.inside(1.25, 0.7) == pytest.approx((math.exp(0.75), 2.0))
    assert box.inside(-0.25, -3.0) == pytest.approx((math.exp(0.25), 2.0))
    assert box.inside(4.5, 0.0)[0] == pytest.approx(math.exp(0.5))
    assert box.part(0.9, 0.7, 0.5, 1.0, 0.5) == pytest.approx((math.e, 2.0))
    assert box.part(0.9, math.log(2), 0.5, 0.0, 0.5) == pytest.approx((math.exp(0.4), 2.0))


def test_a_box_of_one_point_is_run_again_and_again() -> None:
    context = Context(target=TARGET, candidates=(TARGET,), lr=(1e-3, 1e-3), batch=(1e5, 1e5))
    rows = [(*TARGET, 1e5, 1e-3, 3.0)] * 9
    for count in range(10):
        config = propose_next(Runs.of(rows[:count]), context).config
        assert (config.lr, config.batch) == pytest.approx((1e-3, 1e5))
