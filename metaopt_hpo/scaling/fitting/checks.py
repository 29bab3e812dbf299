"""What a table can bear: which axes its cells tell apart, refusals, and cautions about what it lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from metaopt_hpo.scaling.draws import Draws
from metaopt_hpo.scaling.estimates import Caution, LawRefused
from metaopt_hpo.scaling.fitting.cells import Cells
from metaopt_hpo.scaling.fitting.floor_fit import Moved
from metaopt_hpo.scaling.forms.axes import SCALES, Axes, coordinate
from metaopt_hpo.scaling.forms.offsets import LEVEL_SPREAD, NUMBER_LEVEL
from metaopt_hpo.scaling.forms.surface import Array, Surface

if TYPE_CHECKING:
    from metaopt_hpo.scaling.base.population import Base

MIN_SIZES = 3
"""Sizes of a law, without `allow_weak`: two give an exponent and nothing that could contradict it."""

MIN_TRIALS = 6
"""Trials of a law: two of each of three sizes."""

COLLINEAR = 0.98
"""Squared correlation of ln size and ln tokens above which their effects cannot be told apart."""

FAR_OUTSIDE = 1.0
"""ln units beyond a cell's batches from which its optimal batch counts as not seen."""

OPEN_VALLEY = Caution(
    "open-valley",
    "lr and batch trade off along a valley without an end in the table: the best lr at a given batch is known, "
    "the best batch is not (widen the range of batches)",
)


def choose_axes(cells: Cells, base: Base | None = None) -> tuple[Axes, tuple[float, float] | None]:
    """The axes along which the cells vary, and the path tokens = c·size^k where they cannot tell them apart.

    On a path both axes stay: along it the data decide, across it the prior of the exponents alone. A base that knows
    exponents keeps its axes whatever the cells vary.
    """
    n, d = np.log(cells.cell_size), np.log(cells.cell_tokens)
    if base is not None:
        scale = {"size": n, "tokens": d}
        varied = {k: v for k, v in scale.items() if k in base.axes or np.ptp(v) > 0.05}
        return _axes(cells, varied), None
    moves_n, moves_d = np.ptp(n) > 0.05, np.ptp(d) > 0.05
    if moves_n and moves_d:
        if np.corrcoef(n, d)[0, 1] ** 2 > COLLINEAR:
            slope = float(np.cov(n, d)[0, 1] / n.var(ddof=1))
            path = (float(d.mean() - slope * n.mean()), slope)
            return _axes(cells, {"size": n, "tokens": d}), path
        return _axes(cells, {"size": n, "tokens": d}), None
    if moves_n:
        return _axes(cells, {"size": n}), None
    return _axes(cells, {"tokens": d} if moves_d else {}), None


def _axes(cells: Cells, scale: dict[str, Array]) -> Axes:
    """Axes with the further coordinates that vary; they default to what the largest cells used."""
    values = dict(scale)
    defaults: dict[str, float | str] = {}
    largest = int(np.argmax(np.log(cells.cell_size) + np.log(cells.cell_tokens)))  # the product may overflow
    for name, v in cells.cell_extra().items():
        levels = cells.levels.get(name)
        defaults[name] = float(v[largest]) if levels is None else levels[int(v[largest])]
        for key, t in _further(name, v, levels):
            if np.ptp(t) > 1e-6:
                values[key] = t
    centre = np.array([float(v.mean()) for v in values.values()])
    return Axes(tuple(values), centre, defaults, dict(cells.levels))


def _further(name: str, values: Array, levels: tuple[str, ...] | None) -> list[tuple[str, Array]]:
    """Columns of one further coordinate, one value a cell: its number, or an indicator of each word but the first."""
    if levels is None:
        return [(name, coordinate(name, values))]
    return [(f"{name}={word}", (values == i).astype(float)) for i, word in enumerate(levels) if i]


def moved_by(cells: Cells, axes: Axes, but: Sequence[str] = ()) -> Moved:
    """What further coordinates move ln loss by: each, and the square of a number that takes three values or more.

    Args:
        but: coordinates whose part is known otherwise.
    """
    names: list[str] = []
    for name in axes.names:
        if name in SCALES or name in but:
            continue
        names.append(name)
        if "=" not in name and np.unique(cells.cell_extra()[name]).size >= 3:
            names.append(f"{name}*{name}")
    return Moved(tuple(names), axes.features(names, cells.cell_size, cells.cell_tokens, cells.cell_extra()))


def moved_prior(moved: Moved) -> dict[str, tuple[float, float]]:
    """What is known of these beforehand, in the names of `floor.PRIOR`."""
    first, square = NUMBER_LEVEL
    return {
        f"shift:{f}": (0.0, LEVEL_SPREAD if "=" in f else square if "*" in f else first)
        for f in moved.features
    }


def batch_varies(cells: Cells, base: Base | None = None) -> bool:
    """Three batches in some cell identify a batch optimum; so does a base that knows one."""
    if base is not None and base.has_batch:
        return True
    return max(np.unique(np.round(cells.y[cells.cell == j], 6)).size for j in range(cells.k)) >= 3


def _lr_levels(cells: Cells, j: int) -> Array:
    return np.unique(np.round(cells.x[cells.cell == j], 6))


def edge_side(cells: Cells, j: int) -> int:
    """−1 or +1 where the cell's best run has the lowest or highest lr of its cell, else 0."""
    rows = np.flatnonzero(cells.cell == j)
    levels = _lr_levels(cells, j)
    if levels.size < 2:
        return 0
    best = cells.x[rows[np.argmin(cells.z[rows])]]
    return -1 if best <= levels[0] + 1e-6 else (1 if best >= levels[-1] - 1e-6 else 0)


def refusals(cells: Cells, *, weak: bool) -> list[Caution]:
    levels = [_lr_levels(cells, j).size for j in range(cells.k)]
    if max(levels) < 2:
        raise LawRefused("one-lr", "every cell holds a single lr: vary lr at each size to locate its optimum")
    if max(levels) < 3:
        raise LawRefused(
            "one-lr",
            "no cell holds three different lr, so the optimum cannot be located: vary lr at each size",
        )
    if cells.n < MIN_TRIALS:
        raise LawRefused(
            "few-trials", f"{cells.n} usable trials are too few for a law (at least {MIN_TRIALS})"
        )
    out: list[Caution] = []
    sizes = np.unique(cells.cell_size).size
    if sizes < MIN_SIZES:
        reason = (
            f"{sizes} size{'s' if sizes > 1 else ''} cannot show a law across sizes (at least {MIN_SIZES}): run a "
            "smaller model, pass allow_weak=True, or give a prior law"
        )
        if not weak:
            raise LawRefused("few-sizes", reason)
        out.append(Caution("few-sizes", f"the law rests on {sizes} size{'s' if sizes > 1 else ''} only"))
    sides = [edge_side(cells, j) for j in range(cells.k) if levels[j] >= 3]
    for side, word in ((-1, "lowest"), (1, "highest")):
        if sides and all(s == side for s in sides):
            reason = f"every cell's best run has the {word} lr of its grid: extend the grid, the optimum lies outside"
            if not weak:
                raise LawRefused("edge", reason)
            out.append(Caution("edge", reason))
    at_edge = sum(s != 0 for s in sides)
    if at_edge and not any(c.code == "edge" for c in out):
        message = (
            f"{at_edge} of {len(sides)} cells have their best run at the grid's edge, a bound on the optimum"
        )
        out.append(Caution("some-edges", message))
    return out


def axis_cautions(
    cells: Cells, axes: Axes, path: tuple[float, float] | None, has_batch: bool
) -> list[Caution]:
    out: list[Caution] = []
    if not has_batch:
        batches = np.unique(np.round(np.exp(cells.y)))
        most = max(np.unique(np.round(cells.y[cells.cell == j], 6)).size for j in range(cells.k))
        what = (
            f"a single batch ({batches[0]:.4g})"
            if batches.size == 1
            else "no batch varied at a fixed size and tokens"
            if most == 1
            else "two batches at most at a fixed size and tokens, which show no best one (three would)"
        )
        out.append(
            Caution(
                "batch-not-identified", f"the table holds {what}: no batch law, the batch used is given back"
            )
        )
    if path is not None:
        out.append(
            Caution(
                "tokens-follow-size",
                f"tokens grew as size^{path[1]:.3g} in every trial: only that path is known, what lies off it rests on "
                "published exponents",
            )
        )
    elif "tokens" not in axes.names and axes.names:
        out.append(
            Caution("tokens-fixed", "all trials saw the same number of tokens: nothing is known of others")
        )
    return out


def check_bowl(s: Surface) -> None:
    if s.h[0] <= 0:
        raise LawRefused("no-minimum", "the losses show no minimum in lr: widen the grid or add seeds")


def in_open_valley(cells: Cells, axes: Axes, s: Surface) -> bool:
    """Whether the batch has no minimum, or has it far outside what most cells tried."""
    if not s.has_batch or s.open:
        return s.open
    _, y = s.centre(axes.design(cells.cell_size, cells.cell_tokens, cells.cell_extra()))
    low, high = np.full(cells.k, np.inf), np.full(cells.k, -np.inf)
    np.minimum.at(low, cells.cell, cells.y)
    np.maximum.at(high, cells.cell, cells.y)
    outside = np.maximum(np.maximum(y - high, low - y), 0.0)
    return bool(np.median(outside) > FAR_OUTSIDE)


def exponent_interval(law_value: float, column: Array, widen: float, level: float) -> tuple[float, float]:
    """Interval of one exponent: the draws' quantiles about the fitted value, widened for few cells."""
    tail = 0.5 * (1.0 - level)
    low, high = np.quantile(column - law_value, [tail, 1.0 - tail]) * widen + law_value
    return float(low), float(high)


def exponent_cautions(
    axes: Axes, surface: Surface, draws: Draws, widen: Mapping[str, float], level: float
) -> list[Caution]:
    """A caution for each exponent whose interval, as `Law.describe` gives it, holds both signs."""
    out: list[Caution] = []
    targets = [("lr", surface.a, draws.a)] + ([("batch", surface.b, draws.b)] if surface.has_batch else [])
    for label, fitted, drawn in targets:
        for i, name in enumerate(axes.names, start=1):
            if "=" in name:  # an offset, no exponent
                continue
            low, high = exponent_interval(float(fitted[i]), drawn[:, i], widen[label], level)
            if low < 0 < high:
                message = f"the exponent of {label} in {name} may have either sign ({low:.3f} to {high:.3f})"
                out.append(Caution(f"exponent-{label}-{name}", message))
    return out
