"""A law from cells: the surface, its floor, their bootstrap and validation, and what is to be said of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from metaopt_hpo.scaling.base.population import Base
from metaopt_hpo.scaling.domain import Domain
from metaopt_hpo.scaling.estimates import Caution
from metaopt_hpo.scaling.fitting.alternatives import weigh
from metaopt_hpo.scaling.fitting.cells import Cells
from metaopt_hpo.scaling.fitting.checks import (
    OPEN_VALLEY,
    axis_cautions,
    batch_varies,
    check_bowl,
    choose_axes,
    exponent_cautions,
    in_open_valley,
    moved_by,
    moved_prior,
    refusals,
)
from metaopt_hpo.scaling.fitting.decay_fit import fit_decay, lowered_by
from metaopt_hpo.scaling.fitting.floor_error import loss_factor
from metaopt_hpo.scaling.fitting.floor_fit import Moved, fit_floor
from metaopt_hpo.scaling.fitting.oddities import flat_bowl, mixed_units, strays
from metaopt_hpo.scaling.fitting.ordered import measure_trust, validation_cautions
from metaopt_hpo.scaling.fitting.pointfit import point_fitter, slope_prior, solve_sound, start_surface
from metaopt_hpo.scaling.fitting.solver import Solution
from metaopt_hpo.scaling.fitting.uncertainty import (
    bootstrap,
    curvature_cautions,
    measure_curvature,
    measure_scatter,
    small_sample,
)
from metaopt_hpo.scaling.forms.bowl import CUBIC, Bowl
from metaopt_hpo.scaling.forms.decay import NAME
from metaopt_hpo.scaling.forms.floor import POWER, PRIOR, Floor, FloorForm
from metaopt_hpo.scaling.forms.surface import Array
from metaopt_hpo.scaling.law import Law


@dataclass(frozen=True)
class Forms:
    """What a law is made of: the form of the loss about the optimum, and of the loss floor."""

    bowl: Bowl = CUBIC
    floor: FloorForm = POWER


def fit_cells(
    cells: Cells,
    *,
    allow_weak: bool = False,
    prior: Law | None = None,
    base: Base | None = None,
    forms: Forms | None = None,
    draws: int = 200,
    level: float = 0.9,
    seed: int = 0,
) -> Law:
    """`fit` from arrays."""
    forms = forms or Forms()
    cautions = list(cells.cautions)
    axes, path = choose_axes(cells, base)
    has_batch = batch_varies(cells, base)
    if base is None:
        cautions += refusals(cells, weak=allow_weak or prior is not None)
    cautions += axis_cautions(cells, axes, path, has_batch)
    start = start_surface(cells, axes, has_batch, base, forms.bowl)
    slopes = slope_prior(axes, start, prior, base)
    every = cells.n
    cells, solution = solve_sound(cells, axes, start, slopes)
    design = axes.design(cells.size, cells.tokens, cells.extra)
    if cells.n < every:
        message = f"{every - cells.n} runs that exploded were left out of the fit of the surface"
        cautions.append(Caution("left-out-exploded", message))
    check_bowl(solution.surface)
    open_valley = in_open_valley(cells, axes, solution.surface)
    cautions += [OPEN_VALLEY] if open_valley else []
    cautions += mixed_units(cells) if "units-mixed" not in {c.code for c in cautions} else []
    cautions += flat_bowl(cells, axes, solution) if base is None else []
    # on a path the loss cannot be shared out between size and tokens
    names = ("size",) if path is not None else axes.scale_names or ("size",)
    decay = fit_decay(cells, axes, solution, draws=draws, seed=seed)
    lowered = lowered_by(decay, cells, axes)
    at_best = replace(solution, floors=solution.floors - lowered)
    moved = moved_by(cells, axes, (NAME,) if decay else ())
    floor_prior = floor_prior_of(cells, base, moved)
    floor = floor_of_cells(names, cells, at_best, floor_prior, forms.floor, moved)
    rng = np.random.default_rng(seed)
    result = bootstrap(cells, design, solution, slopes, floor, rng, draws, floor_prior, moved, lowered)
    curvature = measure_curvature(cells, axes, solution, slopes, level) if path is None else {}
    few = dict.fromkeys(("lr", "batch"), 1.0) if base is not None else small_sample(cells, axes)
    at_defaults = replace(solution, floors=at_best.floors - moved.values @ np.array(floor.shift))
    widen = few | {"loss": loss_factor(cells, at_defaults, floor.names, seed, prior=floor_prior)}
    cautions += exponent_cautions(axes, solution.surface, result, widen, level)
    cautions += curvature_cautions(curvature)
    tied = path is not None
    validated = axes.scale_names[:1] if tied else axes.scale_names  # on a path, size stands for both
    sound = cells.runs(~strays(cells, axes, solution))
    trust = {n: measure_trust(sound, n, point_fitter(prior, base, forms.bowl), tied=tied) for n in validated}
    cautions += validation_cautions(trust)
    return Law(
        axes=axes,
        surface=solution.surface,
        floor=floor,
        draws=result,
        domain=domain_of(cells),
        noise=max(solution.scale, 1e-6),
        cells=listed(cells, solution),
        trials=every,
        level=level,
        widen=widen,
        scatter=measure_scatter(cells, axes, solution.surface),
        trust=trust,
        curvature=curvature,
        alternatives=weigh(cells, axes, solution, slopes, tied=path is not None, seed=seed),
        warnings=tuple(cautions),
        open_valley=open_valley,
        settings={
            "allow_weak": allow_weak or prior is not None,
            "base": None if base is None else base.to_dict(),
            "seed": seed,
            "trials": every,
        },
        path=path,
        decay=decay,
    )


def floor_of_cells(
    names: tuple[str, ...],
    cells: Cells,
    solution: Solution,
    prior: Mapping[str, tuple[float, float]],
    form: FloorForm,
    moved: Moved,
    start: Floor | None = None,
) -> Floor:
    """The loss floor of the cells' losses at their optima."""
    return fit_floor(
        names,
        np.log(cells.cell_size),
        np.log(cells.cell_tokens),
        solution.floors,
        cells.cell_weight(),
        start=start,
        noise=solution.scale,
        prior=prior,
        form=form,
        moved=moved,
    )


def floor_prior_of(cells: Cells, base: Base | None, moved: Moved) -> dict[str, tuple[float, float]]:
    """By parameter of the floor, prior mean and standard deviation of its logarithm."""
    known = PRIOR if base is None else base.floor_prior(*floor_centre(cells))
    return {**known, **moved_prior(moved)}


def places(cells: Cells) -> tuple[Array, Array, dict[str, Array]]:
    """Sizes, tokens and further coordinates of the cells."""
    return cells.cell_size, cells.cell_tokens, cells.cell_extra()


def floor_centre(cells: Cells) -> tuple[float, float]:
    """(ln size, ln tokens) about which the floor's terms are taken."""
    return float(np.log(cells.cell_size).mean()), float(np.log(cells.cell_tokens).mean())


def listed(cells: Cells, solution: Solution) -> dict[str, Array]:
    """What a law keeps of its cells: one value a cell."""
    return {
        "size": cells.cell_size,
        "tokens": cells.cell_tokens,
        "log_loss": solution.floors,
        "trials": np.bincount(cells.cell, minlength=cells.k).astype(float),
    }


def domain_of(cells: Cells) -> Domain:
    """What the cells cover."""

    def span(values: Array) -> tuple[float, float]:
        return float(values.min()), float(values.max())

    return Domain(
        span(cells.size),
        span(cells.tokens),
        span(np.exp(cells.y)),
        span(np.exp(cells.x)),
        tuple(float(v) for v in np.unique(cells.cell_size)),
    )
