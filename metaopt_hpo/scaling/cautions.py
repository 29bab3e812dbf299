"""What a law says against its own prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from metaopt_hpo.scaling.domain import Domain
from metaopt_hpo.scaling.estimates import Caution
from metaopt_hpo.scaling.fitting.alternatives import Alternatives
from metaopt_hpo.scaling.forms.axes import Axes
from metaopt_hpo.scaling.forms.surface import Array, Surface
from metaopt_hpo.scaling.sameness import SAME


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
    def alternatives(self) -> Alternatives | None: ...
    @property
    def warnings(self) -> tuple[Caution, ...]: ...
    def anchor(self, size: float, tokens: float) -> tuple[float, float]: ...
    def optimum_draws(self, size: float, tokens: float) -> tuple[Array, Array]: ...


EXTRAPOLATION_LIMIT = 16.0
"""Beyond this factor outside the fitted sizes or tokens a prediction carries a caution."""

COSTLY = 5e-3
"""Excess loss of a predicted configuration from which the prediction counts as wrong."""

DOUBT = 0.015
"""Chance of losing more than `COSTLY`, by all that the trials leave open, from which a prediction carries a caution.
Where half of all tables bend (docs/studies/laws) such chances are understated by a factor of four: of laws without a
caution no more than one in twenty is to be wrong."""

ABSTAIN = 0.05
"""The same from which a law gives no verdict on a run: a caution costs its reader a thought, silence costs every run
that would have been stopped."""

WRONG = (
    "missed-size",
    "missed-tokens",
    "unsure-optimum",
    "bend",
    "flat-bowl",
    "units-mixed",
    "size-not-varied",
    "tokens-not-varied",
    "tokens-off-path",
)
"""Codes of the cautions that say a prediction may be wrong, not merely far or incomplete."""

EVERYWHERE = ("flat-bowl", "units-mixed")
"""Those of them that a fit gives and that hold at every size."""


def place_cautions(law: Fitted, size: float, tokens: float, batch: float | None) -> tuple[Caution, ...]:
    """Far outside the fitted ranges, or a batch that was never run."""
    out: list[Caution] = []
    factor = law.domain.factor(size, tokens)
    if factor > EXTRAPOLATION_LIMIT:
        message = (
            f"the prediction lies {factor:.3g}× outside the fitted sizes or tokens "
            f"(limit {EXTRAPOLATION_LIMIT:g}×)"
        )
        out.append(Caution("extrapolation", message))
    if batch is not None and not law.domain.batch[0] / 1.01 <= batch <= law.domain.batch[1] * 1.01:
        low, high = law.domain.batch
        out.append(
            Caution("batch-outside", f"batch {batch:.4g} lies outside the fitted {low:.4g}–{high:.4g}")
        )
    return tuple(out)


def unvaried_cautions(law: Fitted, size: float, tokens: float) -> tuple[Caution, ...]:
    """Where the trials' sizes say nothing of this size, or their tokens nothing of these tokens."""
    if law.path is not None:
        expected = math.exp(law.path[0] + law.path[1] * math.log(size))
        if not 1 / 1.5 < tokens / expected < 1.5:
            message = (
                f"all trials had tokens tied to size; at this size that is {expected:.3g} tokens: lr and batch at "
                f"{tokens:.3g} rest on published exponents, and the loss is that of the path"
            )
            return (Caution("tokens-off-path", message),)
        return ()
    out: list[Caution] = []
    asked = (("size", size, law.domain.size, "were of"), ("tokens", tokens, law.domain.tokens, "saw"))
    for name, value, (low, high), verb in asked:
        if name not in law.axes.names and not low / 1.5 < value < high * 1.5:
            unit = "tokens" if name == "tokens" else "parameters"
            message = f"all trials {verb} about {high:.3g} {unit}; nothing is known of {value:.3g}"
            out.append(Caution(f"{name}-not-varied", message))
    return tuple(out)


def doubts_of(
    law: Fitted,
    size: float,
    tokens: float,
    answer: tuple[float, float],
    *,
    given: bool = False,
    extra: Mapping[str, float] | None = None,
    limit: float = DOUBT,
) -> tuple[Caution, ...]:
    """The cautions of `WRONG` that hold at a size and number of tokens: there the law does not know.

    That it missed sizes (or tokens) which it had not seen counts only beyond those it was fitted to.

    Args:
        answer: (ln lr, ln batch) that the law gives there.
        given: whether the batch was given, so that only lr may be wrong.
        extra: values of further coordinates.
        limit: chance of a costly answer from which it is doubted.
    """
    ranges = {"missed-size": (size, law.domain.size), "missed-tokens": (tokens, law.domain.tokens)}
    said = tuple(
        c for c in law.warnings if c.code in EVERYWHERE or (c.code in ranges and _outside(*ranges[c.code]))
    )
    return (
        *said,
        *unvaried_cautions(law, size, tokens),
        *_costly(law, size, tokens, answer, given, extra, limit),
    )


def _outside(value: float, span: tuple[float, float]) -> bool:
    return not span[0] / (1.0 + SAME) <= value <= span[1] * (1.0 + SAME)


def _costly(
    law: Fitted,
    size: float,
    tokens: float,
    answer: tuple[float, float],
    given: bool,
    extra: Mapping[str, float] | None,
    limit: float,
) -> tuple[Caution, ...]:
    """A caution where the answer may well lose more than `COSTLY` by what else explains the trials."""
    if law.alternatives is None:
        dx, dy = law.optimum_draws(size, tokens)
        return unsure(law.surface, *spread_of(dx, dy * (not given)))
    row = law.axes.design(size, tokens, extra)
    x, y = law.surface.centre(row)
    dx, dy = law.alternatives.distances(row)
    loss = excess_of(law.surface, answer[0] - float(x) - dx, answer[1] - float(y) - dy, given=given)
    lost = loss > COSTLY
    chance = float(lost.mean())
    if chance <= limit:
        return ()
    bent = float(law.alternatives.bent[lost].mean()) > 0.5
    what = (
        "if the optimal lr or batch bends, or steps, as the trials allow"
        if bent
        else "by what the trials leave open"
    )
    message = (
        f"{what}, the predicted configuration loses more than {COSTLY:.1%} with a chance of {chance:.1%} "
        f"(limit {limit:.1%}): run a size or a number of tokens nearer to this one"
    )
    return (Caution("bend" if bent else "unsure-optimum", message),)


def excess_of(surface: Surface, u: Array, v: Array, *, given: bool) -> Array:
    """Loss (ln) of configurations u, v from optima that may be anywhere; with `given` over the best at that batch.

    Beyond the bowl, where a cubic falls again or a valley has no end, nothing is gained.
    """
    if given or not surface.has_batch or surface.open:
        h11, h12 = float(surface.h[0]), float(surface.h[1]) * surface.has_batch
        u, v = u + h12 / h11 * v, np.zeros_like(v)
    return np.maximum(surface.excess(u, v), 0.0)


def spread_of(dx: Array, dy: Array) -> tuple[float, float, float]:
    """Standard deviations of two columns of draws, and their correlation (0 where one does not vary)."""
    sx, sy = float(dx.std()), float(dy.std())
    varied = sx > 0 and sy > 0
    return sx, sy, float(np.mean((dx - dx.mean()) * (dy - dy.mean())) / (sx * sy)) if varied else 0.0


def unsure(surface: Surface, sx: float, sy: float, rho: float) -> tuple[Caution, ...]:
    """The same for a law that knows its draws alone: their expected cost, E[½ δᵀHδ]."""
    h11, h12, h22 = (float(v) for v in surface.h)
    expected = 0.5 * h11 * sx * sx + h12 * rho * sx * sy + 0.5 * h22 * sy * sy
    if expected <= COSTLY:
        return ()
    message = (
        f"the optimum is so uncertain here that the predicted configuration is expected to lose {100 * expected:.2g} % "
        f"against the best (limit {100 * COSTLY:.2g} %)"
    )
    return (Caution("unsure-optimum", message),)
