"""Floors fitted to cells, one or many at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metaopt_hpo.scaling.fitting.floor_solver import FloorBatch, prior_of
from metaopt_hpo.scaling.forms.axes import Array
from metaopt_hpo.scaling.forms.floor import POWER, PRIOR, Floor, FloorForm, floor_of

MODEL_ERROR = 3e-4
"""Least standard deviation (ln loss) of a cell about the floor that a fit believes."""

STEPS = 60
"""Levenberg–Marquardt steps at most."""


@dataclass(frozen=True)
class Moved:
    """Further coordinates that move ln loss: their names as `Axes.features` reads them, and values (cells × names)."""

    features: tuple[str, ...]
    values: Array


def none_moved(cells: int) -> Moved:
    """No such coordinate."""
    return Moved((), np.zeros((cells, 0)))


def fit_floor(
    names: tuple[str, ...],
    log_size: Array,
    log_tokens: Array,
    log_loss: Array,
    weight: Array,
    *,
    start: Floor | None = None,
    noise: float = 1e-3,
    prior: Mapping[str, tuple[float, float]] = PRIOR,
    steps: int = STEPS,
    form: FloorForm = POWER,
    moved: Moved | None = None,
) -> Floor:
    """Fit the floor to cells.

    Args:
        names: terms to use, of "size" and "tokens".
        log_size, log_tokens, log_loss, weight: one value a cell.
        start: where to begin; its scatter then sets how much a cell counts.
        noise: ln-loss scale of a cell's own error.
        prior: as `PRIOR`.
        steps: iterations at most.
        form: how the terms make a loss.
        moved: further coordinates that move ln loss; `prior` holds theirs under "shift:".
    """
    t, centre = _coordinates(names, log_size, log_tokens)
    moved = moved or none_moved(log_size.size)
    mean = float(np.average(log_loss, weights=np.maximum(weight, 1e-12)))
    value, precision = prior_of(prior, len(names), names, form=form, features=moved.features)

    def problem(count: int, sigma: float) -> FloorBatch:
        z, w, mu, q = (np.tile(v, (count, 1)) for v in (log_loss - mean, weight, value, precision))
        return FloorBatch(t, z, w, mu, q, max(sigma, MODEL_ERROR), form, moved.values)

    if start is None:
        starts = _starts(value, len(names))
        batch = problem(len(starts), noise)
        found = batch.minimise(starts, steps)
        theta = found[[int(batch.cost(found).argmin())]]
        for _ in range(2):
            batch = problem(1, float(batch.take(np.array([0])).scatter(theta)[0]))
            theta = batch.minimise(theta, steps)
    else:
        batch = problem(1, start.scatter)
        theta = batch.minimise(_encode(start, centre, np.array([mean])), steps)
    level, coefficient, exponent, power, rest = _decode(theta, np.array([mean]), len(names))
    scatter = max(float(batch.take(np.array([0])).scatter(theta)[0]), 1e-6)
    further = tuple(float(x) for x in rest[0][: len(form.further)])
    shift = tuple(float(x) for x in rest[0][len(form.further) :])
    return Floor(
        names,
        centre,
        float(level[0]),
        coefficient[0],
        exponent[0],
        scatter,
        float(power[0]),
        further,
        form.name,
        moved.features,
        shift,
    )


def refit_floors(
    floor: Floor,
    log_size: Array,
    log_tokens: Array,
    log_loss: Array,
    weight: Array,
    priors: Sequence[Mapping[str, tuple[float, float]]],
    *,
    steps: int,
    moved: Moved | None = None,
) -> Array:
    """Floors of the same cells with other losses, weights and priors, all at once, each begun at `floor`.

    Args:
        floor: fitted to these cells; its scatter sets how much a cell counts.
        log_size, log_tokens: one value a cell.
        log_loss, weight: (fits × cells).
        priors: one a fit.
        steps: iterations at most.
        moved: as `fit_floor` had them.

    Returns:
        `Floor.parameters` of each, about the centre of the cells.
    """
    t, centre = _coordinates(floor.names, log_size, log_tokens)
    mean = np.average(log_loss, axis=1, weights=np.maximum(weight, 1e-12))
    moved, form = moved or none_moved(log_size.size), floor_of(floor.form)
    known = [prior_of(p, len(floor.names), floor.names, form=form, features=moved.features) for p in priors]
    value, precision = (np.array(v) for v in zip(*known, strict=True))
    sigma = max(floor.scatter, MODEL_ERROR)
    batch = FloorBatch(t, log_loss - mean[:, None], weight, value, precision, sigma, form, moved.values)
    theta = batch.minimise(_encode(floor, centre, mean), steps)
    return np.column_stack(_decode(theta, mean, len(floor.names)))


def _coordinates(names: tuple[str, ...], log_size: Array, log_tokens: Array) -> tuple[Array, Array]:
    """(cells × names) logarithms about their mean over the cells, and that mean."""
    t = np.stack([log_size if n == "size" else log_tokens for n in names], axis=1)
    centre = t.mean(axis=0)
    return t - centre, centre


def _starts(value: Array, terms: int) -> Array:
    """Where a fit without a start begins: Hoffmann's form, and one of strong interaction."""
    if terms == 1:
        return value[None].copy()
    starts, power = np.tile(value, (2, 1)), 1 + 2 * terms
    starts[:, power] = 0.0, -1.0
    starts[:, 1 : 1 + terms] = math.log(0.25) / np.exp(starts[:, power : power + 1])
    return starts


def _encode(floor: Floor, centre: Array, mean: Array) -> Array:
    """Parameters of `floor` in fits of these mean ln losses (fits × parameters)."""
    shifted = np.log(np.maximum(floor.coefficient, 1e-12)) - floor.exponent * (centre - floor.centre)
    exponent = np.log(np.maximum(floor.exponent * floor.power, 1e-6))
    power = [math.log(floor.power)] if len(floor.names) > 1 else []
    first = [math.log(max(floor.level, 1e-12)), *shifted, *exponent, *power, *floor.further, *floor.shift]
    theta = np.tile(first, (len(mean), 1))
    theta[:, 0] -= mean
    theta[:, 1 : 1 + len(shifted)] -= mean[:, None] / floor.power
    return theta


def _decode(theta: Array, mean: Array, terms: int) -> tuple[Array, Array, Array, Array, Array]:
    """(E, coefficients, exponents, γ, further parameters and shifts) of each fit."""
    rest = 1 + 2 * terms + (terms > 1)
    power = np.exp(theta[:, rest - 1]) if terms > 1 else np.ones(len(theta))
    level = np.exp(mean + theta[:, 0])
    coefficient = np.exp(theta[:, 1 : 1 + terms] + (mean / power)[:, None])
    exponent = np.exp(theta[:, 1 + terms : 1 + 2 * terms]) / power[:, None]
    return level, coefficient, exponent, power, theta[:, rest:]
