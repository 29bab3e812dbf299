"""Protocol levels: planted effects of width, cap and joint argmins are found, as large as such a study reports them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planted import CONFIG, planted_runs

from metaopt_hpo.attribution import IDEAL, Resample, attribute, fit_plane
from metaopt_hpo.attribution.protocol import ARGMIN, CAPPED, WIDTH, protocol_levels
from metaopt_hpo.theory.minima import log_parabola

B = 0.571
PATH = np.array([0.0, 1.0, B])
WIDE, CAP = f"grid width × {WIDTH:g}", "lr cap"


def levels_of(grid):
    resample = Resample.draw(len(grid.tokens), len(grid.seeds), bootstrap=500, seed=0)
    practice = fit_plane(grid, [IDEAL], "final-loss", resample)
    found = protocol_levels(grid, IDEAL, resample, practice, b=B)
    return practice, {level.name: level for level in found}


def along(log_lr, grid):
    """Exponent along B ~ D^b of a plane through one ln lr a cell."""
    design = np.column_stack([np.ones(len(log_lr)), np.log(grid.tokens), np.log(grid.batch)])
    return float(PATH @ np.linalg.lstsq(design, log_lr, rcond=None)[0])


def study(grid, low, high):
    """What a study reports that runs 41 learning rates from `low` to `high` in every cell and takes the best."""
    wide = np.log(grid.lr)
    mean = np.log(grid.criteria[:, 0, :, :, 2].mean(axis=-1))
    # The planted bowls are parabolas in ln lr, so that three of their points tell what other learning rates give.
    fitted = [np.polyfit(x, y, 2) for x, y in zip(wide, mean, strict=True)]
    lrs = np.linspace(low, high, 41)
    return along(np.array([lrs[np.argmin(np.polyval(f, lrs))] for f in fitted]), grid)


@pytest.fixture(scope="module", params=[0.0, 0.9], ids=["falling", "rising"])
def planted(request):
    """lr ~ D^-0.5 B^0.5, as the bound says, or D^0.4 B^0.5, as fits do."""
    grid = planted_runs({"criterion": request.param}, config=CONFIG, noise=0.1).grids[0]
    optima = log_parabola(np.log(grid.lr), np.log(grid.criteria[:, 0, :, :, 2].mean(axis=-1))).low
    return request.param > 0, grid, optima, *levels_of(grid)


def test_a_narrow_grid_flattens_what_a_study_of_best_runs_reports(planted):
    rising, grid, optima, practice, levels = planted
    middle, half = np.median(optima), 0.5 * np.log(WIDTH)
    level = levels[f"{WIDE}, edges as optima"]
    assert level.lr.value == pytest.approx(study(grid, middle - half, middle + half), abs=0.01)
    assert level.moves
    assert level.effect.high < 0 if rising else level.effect.low > 0
    assert level.effect.value == pytest.approx(level.lr.value - practice.joint(B).value)
    assert level.censored == pytest.approx(np.mean(np.abs(optima - middle) >= half), abs=0.05)


def test_a_cap_hides_the_largest_optima(planted):
    rising, grid, optima, _, levels = planted
    cap = np.quantile(optima, 1 - CAPPED)
    level = levels[f"{CAP}, edges as optima"]
    assert level.lr.value == pytest.approx(study(grid, cap - 12.0, cap), abs=0.02)
    assert level.censored == pytest.approx(CAPPED, abs=0.05)
    # Where the optimum falls with D and rises with B, a cap lowers both slopes, which nearly cancel along the path.
    assert level.effect.value > 0.02 if not rising else (level.moves and level.effect.high < -0.05)


@pytest.mark.parametrize("name", [WIDE, CAP])
def test_edges_as_intervals_undo_both(planted, name):
    _, _, _, practice, levels = planted
    level = levels[f"{name}, edges as intervals"]
    assert level.censored > 0.1
    assert not level.moves
    assert level.lr.value == pytest.approx(practice.joint(B).value, abs=0.03)


def test_a_narrow_grid_that_holds_every_optimum_moves_nothing():
    grid = planted_runs({"criterion": 0.5}, config=CONFIG, noise=0.05).grids[0]
    _, levels = levels_of(grid)
    for edges in ("optima", "intervals"):
        level = levels[f"{WIDE}, edges as {edges}"]
        assert level.effect.value == pytest.approx(0, abs=1e-9)
        assert level.censored == 0


def test_joint_argmins_follow_the_planted_batch_path():
    grid = planted_runs({}, config=CONFIG, noise=0.05).grids[0]
    away = np.log(grid.batch / 2**4) - 0.3 * np.log(grid.tokens / 2**13)
    tilted = replace(grid, criteria=grid.criteria * np.exp(0.5 * away**2)[:, None, None, None, None])
    _, levels = levels_of(tilted)
    joint = levels[ARGMIN]
    assert joint.batch.value == pytest.approx(0.3, abs=0.1)
    assert joint.lr.value == pytest.approx(-0.5 + 0.5 * joint.batch.value, abs=0.05)
    assert joint.effect.low < joint.effect.value < joint.effect.high


def test_every_finding_carries_every_level():
    finding = attribute(planted_runs({"schedule": 0.3}, config=CONFIG, noise=0.1), CONFIG)
    assert [level.name for level in finding.protocol] == [
        "grid spacing × 2",
        *(f"{name}, edges as {edges}" for name in (WIDE, CAP) for edges in ("optima", "intervals")),
        ARGMIN,
    ]
