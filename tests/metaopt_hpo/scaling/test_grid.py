"""A cell's grid gives measured losses back, interpolates inside and knows nothing outside."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metaopt_hpo.scaling.fitting.grid import CellGrid


@pytest.fixture
def grid() -> CellGrid:
    lr, batch = np.meshgrid([1e-3, 2e-3, 4e-3], [1e5, 2e5, 4e5])
    loss = 2.0 + np.log(lr / 2e-3) ** 2 + np.log(batch / 2e5) ** 2
    return CellGrid(lr.ravel(), batch.ravel(), loss.ravel())


def test_measured_points_are_exact_and_the_best_has_no_excess(grid: CellGrid) -> None:
    assert grid.best == 2.0
    assert grid.at(2e-3, 2e5) == pytest.approx(2.0)
    assert grid.excess(2e-3, 2e5) == pytest.approx(0.0)
    assert grid.at(1e-3, 4e5) == pytest.approx(2.0 + 2 * math.log(2) ** 2)
    assert grid.at_edge() == (False, False)


def test_interpolation_stays_between_its_neighbours(grid: CellGrid) -> None:
    rng = np.random.default_rng(0)
    for u, v in rng.uniform(-0.69, 0.69, (50, 2)):
        value = grid.at(2e-3 * math.exp(u), 2e5 * math.exp(v))
        assert grid.best <= value <= float(grid.loss.max())


def test_outside_is_unknown_and_clips_to_the_hull(grid: CellGrid) -> None:
    assert math.isnan(grid.at(1e-2, 2e5))
    assert math.isnan(grid.at(2e-3, 1e6))
    assert grid.clip(1.0, 2e5) == pytest.approx((4e-3, 2e5))
    assert grid.excess(1.0, 2e5) == pytest.approx(math.log(2) ** 2 / 2.0)


def test_single_batch_and_lines() -> None:
    flat = CellGrid(np.array([1e-3, 2e-3, 4e-3]), np.full(3, 1e5), np.array([3.0, 2.0, 3.0]))
    assert flat.at(math.sqrt(2) * 1e-3, 1e5) == pytest.approx(2.5)
    assert math.isnan(flat.at(2e-3, 2e5))
    line = CellGrid(np.array([1e-3, 2e-3, 4e-3]), np.array([1e5, 2e5, 4e5]), np.array([3.0, 2.0, 3.0]))
    assert line.at(2e-3, 2e5) == 2.0
    assert math.isnan(line.at(2e-3, 3e5))
    assert line.excess(2e-3, 1.9e5) == 0.0


def test_seeds_are_averaged() -> None:
    g = CellGrid(np.array([1e-3, 1e-3, 2e-3]), np.full(3, 1e5), np.array([2.0, 4.0, 5.0]))
    assert g.best == 3.0
