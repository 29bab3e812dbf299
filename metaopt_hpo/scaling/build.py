"""fit(table) → Law: robust surface, bootstrap intervals, and refusal where the data cannot bear a law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from metaopt_hpo.scaling.base.conflict import disagreement
from metaopt_hpo.scaling.base.population import Base
from metaopt_hpo.scaling.base.sources import BaseLike, lent
from metaopt_hpo.scaling.counts import OWN, choose, counted, support
from metaopt_hpo.scaling.domain import Domain
from metaopt_hpo.scaling.draws import Draws
from metaopt_hpo.scaling.edge_runs import edge_of
from metaopt_hpo.scaling.estimates import Caution, LawRefused
from metaopt_hpo.scaling.fitting.alternatives import weigh
from metaopt_hpo.scaling.fitting.cells import Cells
from metaopt_hpo.scaling.fitting.checks import (
    MIN_SIZES as MIN_SIZES,  # integrations say how many sizes are needed
)
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
from metaopt_hpo.scaling.fitting.reading import Use, from_table
from metaopt_hpo.scaling.fitting.running import measure_fall
from metaopt_hpo.scaling.fitting.solver import Solution
from metaopt_hpo.scaling.fitting.uncertainty import (
    bootstrap,
    curvature_cautions,
    measure_curvature,
    measure_scatter,
    small_sample,
)
from metaopt_hpo.scaling.forms.bowl import CUBIC, Bowl, bowl_of
from metaopt_hpo.scaling.forms.decay import NAME
from metaopt_hpo.scaling.forms.floor import POWER, PRIOR, Floor, FloorForm, floor_of, recentre
from metaopt_hpo.scaling.forms.surface import Array
from metaopt_hpo.scaling.law import Law

if TYPE_CHECKING:
    from metaopt_hpo.trials.table import TrialTable


@dataclass(frozen=True)
class Forms:
    """What a law is made of: the form of the loss about the optimum, and of the loss floor."""

    bowl: Bowl = CUBIC
    floor: FloorForm = POWER


REFIT_GROWTH = 1.05
"""`refit` fits anew, bootstrap included, once the trials have grown by this factor since it last did."""


def fit(
    table: TrialTable,
    *,
    allow_weak: bool = False,
    prior: Law | None = None,
    base: BaseLike | Sequence[BaseLike] | None = None,
    use: Use = "fixed",
    strategy: str | None = None,
    extra: Sequence[str] = (),
    size: str | Sequence[str] = OWN,
    bowl: str = CUBIC.name,
    floor: str = POWER.name,
    draws: int = 200,
    level: float = 0.9,
    seed: int = 0,
) -> Law:
    """See `scaling.api.fit`."""
    if draws < 20:
        raise ValueError(f"draws must be at least 20, got {draws!r}")
    if not 0.5 <= level < 1:
        raise ValueError(f"level must be in [0.5, 1), got {level!r}")
    if seed < 0:
        raise ValueError(f"seed must be a whole number from 0, got {seed!r}")
    believed = lent(base, prior)
    forms = Forms(bowl_of(bowl), floor_of(floor))
    if believed is not None and forms != Forms():
        raise ValueError(
            f"a base, or a prior law, knows the forms {CUBIC.name} and {POWER.name} only, got {bowl} and {floor}"
        )
    names = (size,) if isinstance(size, str) else tuple(size)
    if not names:
        raise ValueError("size must name at least one count, got none")
    tables = {name: counted(table, name) for name in names}
    read = {n: from_table(t, use=use, strategy=strategy, extra=extra) for n, t in tables.items()}
    count, chosen = names[0], tuple[Caution, ...]()
    if len(read) > 1:
        count, caution = choose({n: support(c) for n, c in read.items()}, names)
        chosen = (caution,)
    table, cells = tables[count], read[count]
    cells = replace(cells, cautions=(*cells.cautions, *chosen))
    said = {n.code: n.message for n in table.notes if n.code.startswith("units")}
    cells = replace(cells, cautions=(*cells.cautions, *(Caution(k, m) for k, m in said.items())))
    unlike = None if believed is None else disagreement(cells, believed)
    if unlike is not None:
        believed, prior, cells = None, None, replace(cells, cautions=(*cells.cautions, unlike))
    try:
        law = fit_cells(
            cells,
            allow_weak=allow_weak,
            prior=prior,
            base=believed,
            forms=forms,
            draws=draws,
            level=level,
            seed=seed,
        )
    except np.linalg.LinAlgError as e:
        reason = "the trials leave the surface undetermined: vary lr, and batch if its optimum is wanted, in more cells"
        raise LawRefused("no-minimum", reason) from e
    options = {"use": use, "strategy": strategy, "extra": list(extra), "size": count}
    return replace(
        law,
        settings=law.settings | options,
        fall=measure_fall(table, cells, law.axes, law.surface),
        edge=edge_of(table, cells, law),
    )


def refit(law: Law, table: TrialTable) -> Law:
    """`law` after some trials more, keeping its bootstrap: the draws move with the point estimate.

    The spread of draws hardly changes with one trial in hundreds; it is drawn anew when the table has grown by
    5 %, when the table's axes changed, or when the law is a small one (under 50 trials).

    Args:
        law: from `fit`; what it leaned on is kept in its settings.
        table: all trials, old and new.
    """
    o = law.settings
    table = counted(table, o.get("size") or OWN)
    cells = from_table(table, use=o["use"], strategy=o["strategy"], extra=o["extra"])
    base = Base.from_dict(o["base"]) if o.get("base") else None
    axes, path = choose_axes(cells, base)
    has_batch = batch_varies(cells, base)
    forms = Forms(law.surface.bowl, floor_of(law.floor.form))
    grown = cells.n > REFIT_GROWTH * o["trials"] or cells.n < 50 or axes.levels != law.axes.levels
    if grown or axes.names != law.axes.names or has_batch != law.surface.has_batch:
        again = fit_cells(
            cells,
            allow_weak=o["allow_weak"],
            base=base,
            forms=forms,
            draws=len(law.draws.a),
            level=law.level,
            seed=o["seed"],
        )
        fall = measure_fall(table, cells, again.axes, again.surface)
        return replace(again, settings=o | {"trials": cells.n}, fall=fall)
    axes = law.axes  # the centre stays, so that old draws mean what they meant
    believed = law.surface if base is None else start_surface(cells, axes, has_batch, base)
    prior = slope_prior(axes, believed, None, base)
    cells, solution = solve_sound(cells, axes, law.surface, prior, iterations=24)
    check_bowl(solution.surface)
    decay = fit_decay(cells, axes, solution, draws=0, seed=0, start=law.decay) if law.decay else None
    raw, solution = solution, replace(solution, floors=solution.floors - lowered_by(decay, cells, axes))
    moved = moved_by(cells, axes, (NAME,) if law.decay else ())
    floor_prior = _floor_prior(cells, base, moved)
    if moved.features != law.floor.features:  # a number took a third value: only a full fit sees its square
        moved = Moved(law.floor.features, axes.features(law.floor.features, *_places(cells)))
    floor = _floor(law.floor.names, cells, solution, floor_prior, forms.floor, moved, start=law.floor)
    draws = Draws(
        law.draws.a + (solution.surface.a - law.surface.a),
        law.draws.b + (solution.surface.b - law.surface.b),
        law.draws.slope,
        recentre(law.draws.floor, law.floor, floor),
    )
    return replace(
        law,
        surface=solution.surface,
        floor=floor,
        draws=draws,
        domain=_domain(cells),
        noise=max(solution.scale, 1e-6),
        cells=_listed(cells, raw),
        trials=cells.n,
        path=path,
        decay=decay,
    )


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
    floor_prior = _floor_prior(cells, base, moved)
    floor = _floor(names, cells, at_best, floor_prior, forms.floor, moved)
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
        domain=_domain(cells),
        noise=max(solution.scale, 1e-6),
        cells=_listed(cells, solution),
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


def _floor(
    names: tuple[str, ...],
    cells: Cells,
    solution: Solution,
    prior: Mapping[str, tuple[float, float]],
    form: FloorForm,
    moved: Moved,
    start: Floor | None = None,
) -> Floor:
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


def _floor_prior(cells: Cells, base: Base | None, moved: Moved) -> dict[str, tuple[float, float]]:
    known = PRIOR if base is None else base.floor_prior(*floor_centre(cells))
    return {**known, **moved_prior(moved)}


def _places(cells: Cells) -> tuple[Array, Array, dict[str, Array]]:
    return cells.cell_size, cells.cell_tokens, cells.cell_extra()


def floor_centre(cells: Cells) -> tuple[float, float]:
    """(ln size, ln tokens) about which the floor's terms are taken."""
    return float(np.log(cells.cell_size).mean()), float(np.log(cells.cell_tokens).mean())


def _listed(cells: Cells, solution: Solution) -> dict[str, Array]:
    """What a law keeps of its cells: one value a cell."""
    return {
        "size": cells.cell_size,
        "tokens": cells.cell_tokens,
        "log_loss": solution.floors,
        "trials": np.bincount(cells.cell, minlength=cells.k).astype(float),
    }


def _domain(cells: Cells) -> Domain:
    def span(values: Array) -> tuple[float, float]:
        return float(values.min()), float(values.max())

    return Domain(
        span(cells.size),
        span(cells.tokens),
        span(np.exp(cells.y)),
        span(np.exp(cells.x)),
        tuple(float(v) for v in np.unique(cells.cell_size)),
    )
