"""What a law says against its own prediction."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from metaopt_hpo.scaling.bend import Bend
from metaopt_hpo.scaling.domain import Domain
from metaopt_hpo.scaling.estimates import Caution
from metaopt_hpo.scaling.sameness import SAME
from metaopt_hpo.scaling.surface import Array, Axes, Surface


class Fitted(Protocol):
    """What the warnings of a prediction are read from: the parts of a fitted law."""

    @property
    def domain(self) -> Domain: ...
    @property
    def path(self) -> tuple[float, float] | None: ...
    @property
    def axes(self) -> Axes: ...
    @property
    def surface(self) -> Surface: ...
    @property
    def bend(self) -> Bend | None: ...
    @property
    def warnings(self) -> tuple[Caution, ...]: ...
    def anchor(self, size: float, tokens: float) -> tuple[float, float]: ...
    def optimum_draws(self, size: float, tokens: float) -> tuple[Array, Array]: ...


EXTRAPOLATION_LIMIT = 16.0
"""Beyond this factor outside the fitted sizes or tokens a prediction carries a caution."""

COSTLY = 5e-3
"""Expected excess loss of a predicted configuration, by the law's own draws, from which it carries a caution."""


WRONG = ("missed-size", "missed-tokens", "unsure-optimum", "bend", "tokens-not-varied", "tokens-off-path")
"""Codes of the cautions that say a prediction may be wrong, not merely far or incomplete."""


def place_cautions(law: Fitted, size: float, tokens: float, batch: float | None) -> tuple[Caution, ...]:
    """Outside the fitted ranges, off the path of tied tokens, a batch that was never run."""
    out: list[Caution] = []
    factor = law.domain.factor(size, tokens)
    if factor > EXTRAPOLATION_LIMIT:
        message = (
            f"the prediction lies {factor:.3g}× outside the fitted sizes or tokens "
            f"(limit {EXTRAPOLATION_LIMIT:g}×)"
        )
        out.append(Caution("extrapolation", message))
    out += (*tokens_cautions(law, size, tokens), *bend_cautions(law, size, tokens))
    if batch is not None and not law.domain.batch[0] / 1.01 <= batch <= law.domain.batch[1] * 1.01:
        low, high = law.domain.batch
        out.append(
            Caution("batch-outside", f"batch {batch:.4g} lies outside the fitted {low:.4g}–{high:.4g}")
        )
    return tuple(out)


def tokens_cautions(law: Fitted, size: float, tokens: float) -> tuple[Caution, ...]:
    """Where the trials' tokens say nothing of these tokens at this size."""
    low, high = law.domain.tokens
    if law.path is not None:
        expected = math.exp(law.path[0] + law.path[1] * math.log(size))
        if not 1 / 1.5 < tokens / expected < 1.5:
            message = (
                f"all trials had tokens tied to size; at this size that is {expected:.3g} tokens: lr and batch at "
                f"{tokens:.3g} rest on published exponents, and the loss is that of the path"
            )
            return (Caution("tokens-off-path", message),)
    elif "tokens" not in law.axes.names and not low / 1.5 < tokens < high * 1.5:
        message = f"all trials saw about {high:.3g} tokens; nothing is known of {tokens:.3g}"
        return (Caution("tokens-not-varied", message),)
    return ()


def bend_cautions(law: Fitted, size: float, tokens: float) -> tuple[Caution, ...]:
    """A bend of ln lr* that the trials show, where going straight on would cost more than `COSTLY`."""
    if law.bend is None or law.domain.factor(size, tokens) <= 1.0 + SAME:
        return ()
    cost = law.bend.cost(law.surface, law.axes.design(*law.anchor(size, tokens)))
    if cost <= COSTLY:
        return ()
    message = (
        f"the optimal lr bends in log-log: if the bend of the fitted trials went on, the predicted lr would lose "
        f"{100 * cost:.2g} % (limit {100 * COSTLY:.2g} %): run a size or a number of tokens nearer to this one"
    )
    return (Caution("bend", message),)


def doubts_of(law: Fitted, size: float, tokens: float) -> tuple[Caution, ...]:
    """The cautions of `WRONG` that hold for any batch at a size and number of tokens: there the law does not know.

    That it missed sizes (or tokens) which it had not seen counts only beyond those it was fitted to.
    """
    ranges = {"missed-size": (size, law.domain.size), "missed-tokens": (tokens, law.domain.tokens)}
    missed = tuple(c for c in law.warnings if c.code in ranges and _outside(*ranges[c.code]))
    dx, dy = law.optimum_draws(size, tokens)
    return (
        *missed,
        *tokens_cautions(law, size, tokens),
        *bend_cautions(law, size, tokens),
        *unsure(law.surface, *spread_of(dx, dy)),
    )


def _outside(value: float, span: tuple[float, float]) -> bool:
    return not span[0] / (1.0 + SAME) <= value <= span[1] * (1.0 + SAME)


def spread_of(dx: Array, dy: Array) -> tuple[float, float, float]:
    """Standard deviations of two columns of draws, and their correlation (0 where one does not vary)."""
    sx, sy = float(dx.std()), float(dy.std())
    varied = sx > 0 and sy > 0
    return sx, sy, float(np.mean((dx - dx.mean()) * (dy - dy.mean())) / (sx * sy)) if varied else 0.0


def unsure(surface: Surface, sx: float, sy: float, rho: float) -> tuple[Caution, ...]:
    """A caution where the optimum is so unsure that its expected cost, E[½ δᵀHδ] over the draws, is large."""
    h11, h12, h22 = (float(v) for v in surface.h)
    expected = 0.5 * h11 * sx * sx + h12 * rho * sx * sy + 0.5 * h22 * sy * sy
    if expected <= COSTLY:
        return ()
    message = (
        f"the optimum is so unsure here that the predicted configuration loses {100 * expected:.2g} % to the best "
        f"on average, by the law's own draws (limit {100 * COSTLY:.2g} %)"
    )
    return (Caution("unsure-optimum", message),)
