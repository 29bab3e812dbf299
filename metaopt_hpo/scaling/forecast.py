"""Final loss of a configuration, before it starts and while it runs: the law plus the run's own curve so far.

A running loss is never compared with another run's loss at other tokens: large batches win late, and early ranks
mislead. Where the table holds curves, what finished runs of like lr and batch still fell from the same part of
their way (`scaling.fitting.running`) turns it into a second opinion on the end, weighed against the law's by their
variances. Without curves the run is compared with the law *at the same tokens and batch*; its offset there carries over
to its end in part, less and less sure with ln(T/t). Where neither curves nor the law say what tokens do to the
loss, a run is taken to fall as runs usually do, with so wide a margin that only a hopeless one is seen as such.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from metaopt_hpo import markup
from metaopt_hpo.scaling.cautions import excess_of
from metaopt_hpo.scaling.estimates import LARGEST, Estimate, no_answer, normal_quantile, positive
from metaopt_hpo.scaling.forms.axes import Array

if TYPE_CHECKING:
    from metaopt_hpo.scaling.law import Law


class HasCurve(Protocol):
    """Anything with equally long `tokens` and `loss`, such as `trials.record.Curve`."""

    @property
    def tokens(self) -> Sequence[float]: ...

    @property
    def loss(self) -> Sequence[float]: ...


CurveLike = HasCurve | Sequence[tuple[float, float]]
"""A curve, or pairs (tokens, loss)."""

CARRY = 0.5
"""Part of an offset from the law that remains per e-fold of tokens: exp(−CARRY·ln(T/t))."""

DRIFT = 0.04
"""Standard deviation of ln loss that an unfinished run may still move against the law, per √ln(T/t)."""


USUAL_FALL = (0.08, 0.06)
"""Mean and standard deviation of how much ln loss still falls per e-fold of tokens, where no curve was ever seen:
finished language models gain 0.03 to 0.05 per e-fold here, and an unfinished run's lr has yet to decay."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Distribution of a final loss: ln loss is normal with `mean` and `sd`.

    Attributes:
        loss: median and interval at the law's level.
        mean, sd: of ln loss.
        excess: expected ln loss above the law's best at this size and tokens.
        factor: how far outside the fitted sizes and tokens the configuration lies (1 inside).

    Examples:
        >>> from metaopt_hpo.scaling import library
        >>> law = library.load("fitted-step-law").law
        >>> f = law.forecast(size=4e8, tokens=4e10, lr=1e-3, batch=2**19)
        >>> f.loss.low < f.loss.value < f.loss.high
        True
    """

    loss: Estimate
    mean: float
    sd: float
    excess: float
    factor: float

    def _repr_html_(self) -> str:
        """For notebooks."""
        e = self.loss
        row = (f"{e.value:.5g}", f"{e.low:.5g} to {e.high:.5g}", f"{self.excess:.2%}")
        return markup.table(
            ("final loss", "interval", "above the best setting"), [row], caption="Forecast of a run"
        )

    def probability_below(self, loss: float) -> float:
        """P(final loss < `loss`)."""
        return chance_below(loss, self.mean, self.sd)


def forecast(
    law: Law, *, size: float, tokens: float, lr: float, batch: float, curve: CurveLike | None = None
) -> Forecast:
    """Distribution of the final loss of one configuration.

    Args:
        law: a fitted law.
        size, tokens, lr, batch: the configuration, `tokens` being those it will see in all.
        curve: what it has reported so far; points without a finite, positive loss are passed over.

    Examples:
        >>> from metaopt_hpo.scaling import library
        >>> law = library.load("fitted-step-law").law
        >>> from metaopt_hpo.scaling import forecast
        >>> forecast(law, size=4e8, tokens=4e10, lr=1e-3, batch=2**19).sd > 0
        True
    """
    mean, sd, excess = distribution(law, size, tokens, lr, batch, curve)
    z = normal_quantile(law.level)
    high = min(mean + z * sd, LARGEST)
    estimate = Estimate(math.exp(mean), math.exp(mean - z * sd), math.exp(high))
    return Forecast(estimate, mean, sd, excess, law.domain.factor(size, tokens))


def distribution(
    law: Law, size: float, tokens: float, lr: float, batch: float, curve: CurveLike | None
) -> tuple[float, float, float]:
    """(mean, standard deviation, excess) of a forecast as plain floats, which is what a verdict needs."""
    positive("size", size)
    positive("tokens", tokens)
    positive("lr", lr)
    positive("batch", batch)
    mean, variance, excess = log_loss(law, size, tokens, lr, batch)
    mean, variance = with_curve(law, (size, tokens, lr, batch), curve, mean, variance)
    if not (abs(mean) < LARGEST and variance >= 0.0):  # also where either is NaN
        raise no_answer(size, tokens)
    return mean, math.sqrt(variance + law.noise**2), excess


def possible_excess(law: Law, size: float, tokens: float, lr: float, batch: float) -> list[float]:
    """Excess of a configuration in ln loss, for each draw of where the optimum may be (`law.alternatives`)."""
    if law.alternatives is None:
        return [log_loss(law, size, tokens, lr, batch)[2]]
    x, y, *_ = law.at(size, tokens)
    dx, dy = law.alternatives.distances(law.axes.design(*law.anchor(size, tokens)))
    u, v = math.log(lr) - x - dx, (math.log(batch) - y - dy) * law.surface.has_batch
    return [float(e) for e in excess_of(law.surface, u, v, given=law.open_valley)]


def possible_ends(
    law: Law, size: float, tokens: float, lr: float, batch: float, curve: CurveLike | None
) -> list[tuple[float, float]]:
    """(mean, standard deviation) of the final ln loss for each of them."""
    place = law.at(size, tokens)
    out = []
    for excess in possible_excess(law, size, tokens, lr, batch):
        found = with_curve(law, (size, tokens, lr, batch), curve, place.f + excess, place.var_f)
        out.append((found[0], math.sqrt(found[1] + law.noise**2)))
    return out


def chance_below(loss: float, mean: float, sd: float) -> float:
    """P(final loss < `loss`) of a normal ln loss."""
    return 0.5 * math.erfc((mean - math.log(loss)) / (sd * math.sqrt(2.0)))


def with_curve(
    law: Law,
    config: tuple[float, float, float, float],
    curve: CurveLike | None,
    mean: float,
    variance: float,
    fall: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """(mean, variance) of the final ln loss of (size, tokens, lr, batch), once its last report is known too.

    Args:
        law, config, curve: as in `forecast`.
        mean, variance: without the report.
        fall: (mean, standard deviation) of how much ln loss still falls from there, where it is known better than the
            law knows it.
    """
    size, tokens, lr, batch = config
    seen = None if curve is None else last_point(curve)
    if seen is None:
        return mean, variance
    t, observed = seen
    if t >= tokens:
        return observed, 0.0
    left = math.log(tokens / t)
    if fall is not None:
        pass
    elif law.fall is not None:
        x, y, *_ = law.at(size, tokens)
        fall = law.fall.at(left, math.log(lr) - x, math.log(batch) - y if law.surface.has_batch else 0.0)
        if fall is None:  # earlier than curves reach
            return mean, variance
    elif "tokens" not in law.floor.names:
        fall = USUAL_FALL[0] * left, math.hypot(USUAL_FALL[1] * left, DRIFT * math.sqrt(left))
    else:
        then, then_variance, _ = log_loss(law, size, t, lr, batch)
        carry = math.exp(-CARRY * left)
        spread = (1.0 - carry) ** 2 * min(variance, then_variance + variance) + DRIFT**2 * left
        return mean + carry * (observed - then), spread
    own = fall[1] ** 2 + law.noise**2
    gap = observed - fall[0] - mean
    variance = max(variance, gap * gap - own)  # a run far off the law's interval shows the law wrong there
    share = variance / (variance + own)
    return mean + share * gap, share * own


def log_loss(law: Law, size: float, tokens: float, lr: float, batch: float) -> tuple[float, float, float]:
    """(mean, variance, excess) of ln loss at the end of a configuration, in plain floats: microseconds."""
    x, y, f, var_f, var_x, var_y, _ = law.at(size, tokens)
    h = law.scalars
    excess, sx, sy = law.bowl.point(h, math.log(lr) - x, math.log(batch) - y)
    blur = 0.5 * (h[0] * var_x + h[2] * var_y)
    variance = var_f + sx * sx * var_x + sy * sy * var_y + 2.0 * blur * blur
    return f + excess + blur, variance, excess + blur


def points_of(curve: CurveLike) -> Array:
    """(reports × 2): tokens and loss of those points of a curve that are positive and finite."""
    pairs = curve if isinstance(curve, Sequence) else list(zip(curve.tokens, curve.loss, strict=True))
    points = np.array(pairs, dtype=float).reshape(-1, 2)
    return np.asarray(points[(np.isfinite(points) & (points > 0)).all(axis=1)])


def last_point(curve: CurveLike) -> tuple[float, float] | None:
    """(tokens, ln loss) of the last finite point of a curve."""
    if isinstance(curve, Sequence):
        pairs: Sequence[tuple[float, float]] = curve
        points = reversed(pairs)
    else:
        points = zip(reversed(curve.tokens), reversed(curve.loss), strict=True)
    try:
        for t, loss in points:
            if math.isfinite(loss) and loss > 0 and t > 0:
                return float(t), math.log(loss)
    except (TypeError, ValueError):
        raise ValueError("curve must hold pairs of numbers, tokens and loss") from None
    return None
