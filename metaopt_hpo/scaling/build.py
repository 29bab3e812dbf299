"""fit(table) → Law, and the law after more trials; `from_cells` puts one together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np

from metaopt_hpo.scaling.base.conflict import disagreement
from metaopt_hpo.scaling.base.population import Base
from metaopt_hpo.scaling.base.sources import BaseLike, lent
from metaopt_hpo.scaling.counts import OWN, choose, counted, support
from metaopt_hpo.scaling.draws import Draws
from metaopt_hpo.scaling.edge_runs import edge_of
from metaopt_hpo.scaling.estimates import Caution, LawRefused
from metaopt_hpo.scaling.fitting.checks import (
    MIN_SIZES as MIN_SIZES,  # integrations say how many sizes are needed
)
from metaopt_hpo.scaling.fitting.checks import (
    batch_varies,
    check_bowl,
    choose_axes,
    moved_by,
)
from metaopt_hpo.scaling.fitting.decay_fit import fit_decay, lowered_by
from metaopt_hpo.scaling.fitting.floor_fit import Moved
from metaopt_hpo.scaling.fitting.pointfit import slope_prior, solve_sound, start_surface
from metaopt_hpo.scaling.fitting.reading import Use, from_table
from metaopt_hpo.scaling.fitting.running import measure_fall
from metaopt_hpo.scaling.forms.bowl import CUBIC, bowl_of
from metaopt_hpo.scaling.forms.decay import NAME
from metaopt_hpo.scaling.forms.floor import POWER, floor_of, recentre
from metaopt_hpo.scaling.from_cells import (
    Forms,
    domain_of,
    fit_cells,
    floor_of_cells,
    floor_prior_of,
    listed,
    places,
)
from metaopt_hpo.scaling.law import Law

if TYPE_CHECKING:
    from metaopt_hpo.trials.table import TrialTable


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
    extra: str | Sequence[str] = (),
    size: str | Sequence[str] = OWN,
    bowl: str = CUBIC.name,
    floor: str = POWER.name,
    draws: int = 200,
    level: float = 0.9,
    seed: int = 0,
) -> Law:
    """See `scaling.api.fit`."""
    for label, value, least in (("draws", draws, 20), ("seed", seed, 0)):
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{label} must be a whole number from {least}, got {value!r}")
    if not (isinstance(level, (int, float)) and 0.5 <= level < 1):
        raise ValueError(f"level must be in [0.5, 1), got {level!r}")
    extra = (extra,) if isinstance(extra, str) else tuple(extra)
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
    cells = replace(cells, cautions=(*cells.cautions, *chosen, *units_cautions(table)))
    unlike = None if believed is None else disagreement(cells, believed)
    if unlike is not None:
        believed, prior, cells = None, None, replace(cells, cautions=(*cells.cautions, unlike))
    with _determined():
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
    options = {"use": use, "strategy": strategy, "extra": list(extra), "size": count}
    return replace(
        law,
        settings=law.settings | options,
        fall=measure_fall(table, cells, law.axes, law.surface),
        edge=edge_of(table, cells, law),
    )


@contextmanager
def _determined() -> Iterator[None]:
    """Refuses cells that leave the surface undetermined."""
    try:
        yield
    except np.linalg.LinAlgError as e:
        reason = "the trials leave the surface undetermined: vary lr, and batch if its optimum is wanted, in more cells"
        raise LawRefused("no-minimum", reason) from e


def units_cautions(table: TrialTable) -> tuple[Caution, ...]:
    """What the reader of a table said of its units, once each."""
    said = {n.code: n.message for n in table.notes if n.code.startswith("units")}
    return tuple(Caution(k, m) for k, m in said.items())


ONCE = ("size-counts", "base-unlike", "prior-unlike")
"""Codes of what `fit` decides once, by what a refit is not given again: they go with the law."""


@_determined()
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
    once = (c for c in law.warnings if c.code in ONCE)
    cells = replace(cells, cautions=(*cells.cautions, *once, *units_cautions(table)))
    every = cells
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
        settings = o | {"trials": cells.n}
        return replace(again, settings=settings, fall=fall, edge=edge_of(table, every, again))
    axes = law.axes  # the centre stays, so that old draws mean what they meant
    believed = law.surface if base is None else start_surface(cells, axes, has_batch, base)
    prior = slope_prior(axes, believed, None, base)
    cells, solution = solve_sound(cells, axes, law.surface, prior, iterations=24)
    check_bowl(solution.surface)
    decay = fit_decay(cells, axes, solution, draws=0, seed=0, start=law.decay) if law.decay else None
    raw, solution = solution, replace(solution, floors=solution.floors - lowered_by(decay, cells, axes))
    moved = moved_by(cells, axes, (NAME,) if law.decay else ())
    floor_prior = floor_prior_of(cells, base, moved)
    if moved.features != law.floor.features:  # a number took a third value: only a full fit sees its square
        moved = Moved(law.floor.features, axes.features(law.floor.features, *places(cells)))
    floor = floor_of_cells(law.floor.names, cells, solution, floor_prior, forms.floor, moved, start=law.floor)
    draws = Draws(
        law.draws.a + (solution.surface.a - law.surface.a),
        law.draws.b + (solution.surface.b - law.surface.b),
        law.draws.slope,
        recentre(law.draws.floor, law.floor, floor),
    )
    found = replace(
        law,
        surface=solution.surface,
        floor=floor,
        draws=draws,
        domain=domain_of(cells),
        noise=max(solution.scale, 1e-6),
        cells=listed(cells, raw),
        trials=every.n,
        path=path,
        decay=decay,
    )
    return replace(found, edge=edge_of(table, every, found))
