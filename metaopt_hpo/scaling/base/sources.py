"""Where a base comes from: a table of runs, a fitted law, a law of the library, or several of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from metaopt_hpo.scaling.base.population import AXES, Base, mean_of
from metaopt_hpo.scaling.fitting.checks import choose_axes
from metaopt_hpo.scaling.fitting.floor_fit import fit_floor
from metaopt_hpo.scaling.fitting.pointfit import PointFit, point_fit
from metaopt_hpo.scaling.fitting.reading import from_table
from metaopt_hpo.scaling.forms.floor import Floor
from metaopt_hpo.scaling.forms.surface import Array
from metaopt_hpo.scaling.law import Law
from metaopt_hpo.scaling.library_files import fitted
from metaopt_hpo.trials.table import TrialTable

BaseLike = Law | TrialTable | Base | str
"""What strength can be borrowed from: a fitted law, a table of runs, or the name of a fitted law in the library."""


def base_of(source: BaseLike | Sequence[BaseLike]) -> Base:
    """The base that a table, a law, a name in the library, or several of them give.

    Raises:
        LawRefused: a table shows no optimum.
        LibraryError: no fitted law of that name.
        ValueError: an empty list, or something else.
    """
    if isinstance(source, Base):
        return source
    if isinstance(source, str):
        return base_of(fitted(source))
    if isinstance(source, TrialTable):
        return _of_table(source)
    if isinstance(source, Law):
        return _of_fit(source, source.floor)
    if not isinstance(source, Iterable):
        raise ValueError(
            "base must be a table of trials, a fitted law, the name of a fitted law in the library, or a list of them, "
            f"got {_said(source)}"
        )
    parts = [base_of(s) for s in source]
    if not parts:
        raise ValueError("base is an empty list: give a table or a law, or leave it out")
    return mean_of(parts)


LEAST_SLOPE_SPREAD = 0.02
"""Standard deviation of an exponent below which no prior law is believed."""


def prior_of(law: Law) -> Base:
    """A law as a prior: exponents believed within its own intervals, all else as of another table like it.

    Its optimum at the trials' own sizes and tokens is where their fit begins, and is left as they say otherwise.
    """
    base = base_of(law)
    slopes = np.full((2, len(AXES)), math.nan)
    for row, (draws, what) in enumerate(((law.draws.a, "lr"), (law.draws.b, "batch"))):
        for column, name in enumerate(AXES):
            if name in law.axes.names and (row == 0 or base.has_batch):
                own = float(draws[:, 1 + law.axes.names.index(name)].std()) * law.widen[what]
                slopes[row, column] = max(own, LEAST_SLOPE_SPREAD)
    return replace(base, slopes=slopes)


def lent(base: BaseLike | Sequence[BaseLike] | None, prior: Law | None) -> Base | None:
    """What `base=` or `prior=` lends; None where neither is given.

    Raises:
        ValueError: both are given, or the prior is no fitted law.
    """
    if prior is not None and base is not None:
        raise ValueError("give prior or base, not both: a base holds what a prior law knows")
    if not (prior is None or isinstance(prior, Law)):
        raise ValueError(
            f"prior must be a fitted law, such as library.prior('fitted-step-law'), got {_said(prior)}"
        )
    return prior_of(prior) if prior is not None else None if base is None else base_of(base)


def _said(given: object) -> str:
    """What stands where a law should, in a few words."""
    if isinstance(given, (str, int, float)):
        return repr(given)
    inside = ", whose .law is one" if isinstance(getattr(given, "law", None), Law) else ""
    return f"a {type(given).__name__}{inside}"


def _of_table(table: TrialTable) -> Base:
    cells = from_table(table)
    fit = point_fit(cells)
    floor = None
    if set(AXES) <= set(fit.axes.names) and choose_axes(cells)[1] is None:
        n, d = np.log(cells.cell_size), np.log(cells.cell_tokens)
        floor = fit_floor(AXES, n, d, fit.floors, cells.cell_weight(), noise=fit.scale)
    return _of_fit(fit, floor)


def _of_fit(fit: PointFit | Law, floor: Floor | None) -> Base:
    surface, axes = fit.surface, fit.axes
    known = {n: (i, float(axes.centre[i])) for i, n in enumerate(axes.names) if n in AXES}
    centre = np.array([known[n][1] if n in known else math.nan for n in AXES])

    def coefficients(values: Array) -> Array:
        slopes = [float(values[1 + known[n][0]]) if n in known else math.nan for n in AXES]
        return np.array([float(values[0]), *slopes])

    batch = surface.has_batch and not surface.open
    h = np.array([*surface.h, surface.skew], dtype=float)
    if not batch:
        h[1:3] = math.nan
    return Base(
        centre,
        coefficients(surface.a),
        coefficients(surface.b) if batch else np.full(3, math.nan),
        h,
        float(fit.noise if isinstance(fit, Law) else fit.scale),
        floors=(floor,) if floor is not None and floor.names == AXES else (),
    )
