"""Whether trials disagree with a base: then they are left to themselves, and the law says so."""

from __future__ import annotations

import numpy as np
from scipy import stats

from metaopt_hpo.scaling.base.population import AXES, Base
from metaopt_hpo.scaling.estimates import Caution, LawRefused
from metaopt_hpo.scaling.fitting.cells import Cells
from metaopt_hpo.scaling.fitting.checks import refusals
from metaopt_hpo.scaling.fitting.pointfit import PointFit, point_fit, scale_centre
from metaopt_hpo.scaling.forms.surface import CELL_SCATTER, RUN_ERROR

UNLIKE = 0.01
"""Probability, under the base, of exponents as far from its own as those found; below it the base is not used."""


def disagreement(cells: Cells, base: Base) -> Caution | None:
    """A warning where trials that can bear a law of their own have other exponents of lr* than the base.

    The trials are fitted alone; the exponents' distance from the base's is measured by both uncertainties together.
    """
    try:
        refusals(cells, weak=False)
        alone = point_fit(cells)
    except (LawRefused, np.linalg.LinAlgError):
        return None
    names = [n for n in AXES if n in alone.axes.names and n in base.axes]
    if not names:
        return None
    mean, spread = base.at("lr", scale_centre(alone.axes, base))
    rows = [1 + alone.axes.names.index(n) for n in names]
    known = [1 + AXES.index(n) for n in names]
    covariance = _slope_covariance(cells, alone)[np.ix_(rows, rows)] + np.diag(spread[known] ** 2)
    away = alone.surface.a[rows] - mean[known]
    chance = float(stats.chi2.sf(away @ np.linalg.solve(covariance, away), len(names)))
    if chance >= UNLIKE:
        return None
    found = ", ".join(f"{n}^{v:.2f}" for n, v in zip(names, alone.surface.a[rows], strict=True))
    theirs = ", ".join(f"{n}^{v:.2f}" for n, v in zip(names, mean[known], strict=True))
    lender = "base" if base.slopes is None else "prior"
    return Caution(
        f"{lender}-unlike",
        f"the {lender} was not used: these trials' optimal lr moves as {found}, the {lender}'s as {theirs} "
        f"(chance {chance:.2g})",
    )


def _slope_covariance(cells: Cells, fit: PointFit) -> np.ndarray:
    """Covariance of the coefficients of ln lr*, as cells of so many runs, scattering about a line, leave it."""
    design = fit.axes.design(cells.cell_size, cells.cell_tokens, cells.cell_extra())
    runs = np.bincount(cells.cell, minlength=cells.k)
    error = CELL_SCATTER**2 + RUN_ERROR**2 / np.maximum(runs - 1, 0.25)
    normal = (design / error[:, None]).T @ design + 1e-9 * np.eye(design.shape[1])
    return np.asarray(np.linalg.inv(normal))
