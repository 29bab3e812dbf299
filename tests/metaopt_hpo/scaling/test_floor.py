"""The loss floor: recovery of known laws, its derivative, equivariance, and what its draws cover."""

from __future__ import annotations

import numpy as np
import pytest

from metaopt_hpo.scaling.fitting.floor_error import LEVEL_ERROR, draw_doubt, draw_floors
from metaopt_hpo.scaling.fitting.floor_fit import fit_floor, refit_floors
from metaopt_hpo.scaling.fitting.floor_solver import FloorBatch, prior_of
from metaopt_hpo.scaling.forms.floor import PRIOR, Floor, log_loss_of_draws, recentre

BOTH = ("size", "tokens")
SIZES, TOKENS = np.geomspace(4e7, 6e8, 4), np.geomspace(4e9, 2e11, 6)
SIZE, TOKEN = (m.ravel() for m in np.meshgrid(SIZES, TOKENS, indexing="ij"))


def known(power: float) -> Floor:
    """A floor with effective exponents 0.25 and 0.2."""
    coefficient = np.array([0.3, 0.5]) ** (1 / power) / 2
    return Floor(BOTH, np.log([1e8, 2e10]), 1.3, coefficient, np.array([0.25, 0.2]) / power, 1e-3, power)


def fitted(
    log_loss: np.ndarray, size: np.ndarray = SIZE, tokens: np.ndarray = TOKEN, **options: object
) -> Floor:
    return fit_floor(BOTH, np.log(size), np.log(tokens), log_loss, np.ones(len(size)), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("power", [0.4, 0.7, 1.0])
def test_recovers_a_known_law_four_times_beyond(power: float) -> None:
    truth = known(power)
    noise = 3e-4 * np.random.default_rng(0).standard_normal(SIZE.size)
    found = fitted(truth.log_loss(SIZE, TOKEN) + noise)
    at = (2.4e9, 8e11)
    assert abs(float(found.log_loss(*at) - truth.log_loss(*at))) < 6e-3
    assert found.power == pytest.approx(power, rel=0.4)


def test_a_separable_floor_cannot_do_what_the_power_does() -> None:
    z = known(0.4).log_loss(SIZE, TOKEN)
    separable = fitted(z, prior={**PRIOR, "power": (0.0, 1e-3)})
    assert separable.power == pytest.approx(1.0, abs=0.01)
    assert np.std(z - separable.log_loss(SIZE, TOKEN)) > 10 * np.std(z - fitted(z).log_loss(SIZE, TOKEN))


@pytest.mark.parametrize("names", [BOTH, ("tokens",)])
def test_jacobian(names: tuple[str, ...]) -> None:
    t = np.random.default_rng(1).normal(size=(7, len(names)))
    value, precision = (np.tile(v, (2, 1)) for v in prior_of(PRIOR, len(names)))
    batch = FloorBatch(t, np.zeros((2, 7)), np.ones((2, 7)), value, precision, 1e-3)
    theta = value + np.array([[0.1], [-0.2]])
    f, jac = batch.model(theta)
    assert f == pytest.approx(batch.log_loss(theta))
    for i in range(theta.shape[1]):
        step = np.zeros_like(theta)
        step[:, i] = 1e-6
        numeric = (batch.log_loss(theta + step) - batch.log_loss(theta - step)) / 2e-6
        assert jac[:, :, i] == pytest.approx(numeric, abs=1e-7)


@pytest.mark.parametrize("names", [BOTH, ("size",)])
def test_floors_fitted_together_are_those_fitted_alone(names: tuple[str, ...]) -> None:
    rng = np.random.default_rng(4)
    z = known(0.5).log_loss(SIZE, TOKEN)
    floor = fit_floor(names, np.log(SIZE), np.log(TOKEN), z, np.ones(z.size))
    losses = z + 3e-3 * rng.standard_normal((5, z.size))
    weights = rng.gamma(1.0, 1.0, (5, z.size))
    priors = [PRIOR | {"exponent": (-1.4 + 0.1 * i, 0.5)} for i in range(5)]
    together = refit_floors(floor, np.log(SIZE), np.log(TOKEN), losses, weights, priors, steps=12)
    for row, loss, weight, prior in zip(together, losses, weights, priors, strict=True):
        alone = fit_floor(
            names, np.log(SIZE), np.log(TOKEN), loss, weight, start=floor, prior=prior, steps=12
        )
        assert row == pytest.approx(alone.parameters(), rel=1e-6)


def test_units_change_nothing() -> None:
    z = known(0.5).log_loss(SIZE, TOKEN) + 1e-3 * np.random.default_rng(2).standard_normal(SIZE.size)
    plain = fitted(z).log_loss(1e9, 1e12)
    assert float(fitted(z + np.log(1e3)).log_loss(1e9, 1e12) - np.log(1e3)) == pytest.approx(plain, abs=1e-6)
    assert float(fitted(z, SIZE, 4096 * TOKEN).log_loss(1e9, 4096e12)) == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("names", [("size",), ("tokens",), BOTH])
def test_one_cell_and_one_axis_give_finite_floors(names: tuple[str, ...]) -> None:
    for count in (1, 2, 3):
        n, d = np.log(SIZES[:count]), np.log(TOKENS[:count])
        floor = fit_floor(names, n, d, np.linspace(1.0, 0.9, count), np.ones(count))
        assert np.isfinite(floor.log_loss(1e10, 1e13))


def test_recentred_draws_keep_their_values() -> None:
    old, new = fitted(known(0.4).log_loss(SIZE, TOKEN)), fitted(known(0.4).log_loss(SIZE, TOKEN) + 0.01)
    moved = Floor(
        BOTH,
        new.centre + 0.3,
        new.level,
        new.coefficient * np.exp(-new.exponent * 0.3),
        new.exponent,
        new.scatter,
        new.power,
    )
    draws = recentre(np.tile(old.parameters(), (3, 1)), old, moved)
    assert log_loss_of_draws(draws, moved, 1e9, 1e12) == pytest.approx(float(moved.log_loss(1e9, 1e12)))


def test_draws_cover_laws_whose_sizes_and_tokens_lie_off_them() -> None:
    rng = np.random.default_rng(3)
    at, inside = (1.2e9, 4e11), []
    for _ in range(30):
        truth = known(float(rng.uniform(0.35, 0.8)))
        z = truth.log_loss(SIZE, TOKEN)
        for values in (SIZE, TOKEN):
            _, level = np.unique(values, return_inverse=True)
            z = z + LEVEL_ERROR * rng.standard_normal(level.max() + 1)[level]
        floor = fitted(z)
        doubts = [draw_doubt(floor, SIZE, TOKEN, rng) for _ in range(40)]
        rows = draw_floors(floor, SIZE, TOKEN, z, np.ones(SIZE.size), doubts)
        spread = log_loss_of_draws(rows, floor, *at)
        low, high = np.quantile(spread, [0.05, 0.95])
        inside.append(low <= float(truth.log_loss(*at)) <= high)
    assert np.mean(inside) >= 0.75
