"""The bounds of `bounds` tuned over lr, momentum and batch: best setting, critical batch, and the valley along batch.

`LMOBound.optimum`, `.critical_batch` and `.ridge` are these functions, and say what each gives and rests on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaopt_hpo.theory._checks import check_batch, check_momentum, check_tokens
from metaopt_hpo.theory._forms import Form, Tunable
from metaopt_hpo.theory._search import minimise_nested, minimise_scalar
from metaopt_hpo.theory.schedules import schedule_factors

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Optimum:
    """The setting that minimises a bound at a token budget.

    Examples:
        >>> from metaopt_hpo.theory import LMOBound
        >>> best = LMOBound(1.0, 1.0, 1.0).optimum(tokens=1e9)
        >>> best.lr > 0
        True
    """

    lr: float
    momentum: float
    """a in (0, 1]: the weight of the new gradient (β₁ = 1 − a)."""
    batch: float
    tokens: float
    value: float
    """The bound there: average dual gradient norm (nonconvex), duality gap (frank-wolfe) or loss gap."""
    own_step: float
    """The method's own step: lr, but weight_decay · lr for Frank–Wolfe."""
    form: Form
    """Form of the bound that this is the optimum of: others have other optima."""

    @property
    def steps(self) -> float:
        """K = D / B."""
        return self.tokens / self.batch


@dataclass(frozen=True, slots=True)
class Ridge:
    """The valley of the tuned bound along B at one token budget; lr and momentum are tuned at each batch.

    Examples:
        >>> from metaopt_hpo.theory import LMOBound
        >>> ridge = LMOBound(1.0, 1.0, 1.0).ridge(tokens=1e9)
        >>> ridge.low < ridge.high
        True
    """

    batch: Array
    momentum: Array
    lr: Array
    value: Array
    low: float
    """Smallest batch whose value lies within the tolerance of the minimum."""
    high: float
    """Largest such batch."""
    form: Form
    """Form of the bound: it decides whether there is a ridge at all."""

    @property
    def decades(self) -> float:
        """Width of the valley, log₁₀(high / low): wide means that a joint argmin over (lr, B) is ill-conditioned."""
        return math.log10(self.high / self.low)


def optimum(
    bound: Tunable, tokens: float, *, batch: float | None = None, momentum: float | None = None
) -> Optimum:
    """The best (lr, momentum, batch) at D tokens."""
    check_tokens(tokens)
    if bound.kind == "power-law" and (batch is None or momentum is None):
        raise ValueError("the power-law proxy's tuned value depends on neither batch nor momentum: give both")
    if batch is None:
        batch = _best_batch(bound, tokens, momentum)
    check_batch(batch, tokens)
    steps = tokens / batch
    if momentum is None:
        momentum = _best_momentum(bound, np.array([batch]), tokens)[0]
    lr = float(bound.best_lr(momentum, batch, steps))
    own = lr * bound.weight_decay if bound.kind == "frank-wolfe" else lr
    value = float(bound.value(lr, momentum, batch, steps))
    return Optimum(lr, float(momentum), float(batch), float(tokens), value, own, bound.form)


def critical_batch(bound: Tunable, tokens: ArrayLike) -> Any:
    """B_c: where the simplified form's tuned momentum reaches 1."""
    check_tokens(tokens)
    d = np.asarray(tokens, dtype=float)
    if bound.kind == "power-law":
        raise ValueError(
            "the power-law proxy has no critical batch: its tuned value does not depend on batch"
        )
    if bound.noise == 0:
        raise ValueError(
            "noise is 0: without noise there is no critical batch (every batch above 1 wastes tokens)"
        )
    if bound.kind == "star-convex":
        plain = bound.simplified()
        best = np.array([_best_batch(plain, float(t), 1.0) for t in d.ravel()])
        return best.reshape(d.shape)[()]
    wide = 2.0 if bound.kind == "frank-wolfe" else 1.0
    wide *= schedule_factors(bound.schedule).value ** 2
    ratio = np.sqrt(2 * bound.delta * bound.smoothness * wide / d) / (2 * bound.q * bound.noise)
    return ratio ** (-1 / (bound.q + 0.5))


def ridge(bound: Tunable, tokens: float, *, tolerance: float, points: int) -> Ridge:
    """The valley along B with lr and momentum tuned."""
    check_tokens(tokens)
    if bound.kind == "power-law":
        raise ValueError("the power-law proxy is flat in batch and momentum everywhere: it has no ridge")
    batch = np.geomspace(1.0, tokens, points)
    momentum = _best_momentum(bound, batch, tokens)
    lr = bound.best_lr(momentum, batch, tokens / batch)
    value = bound.value(lr, momentum, batch, tokens / batch)
    inside = batch[value <= value.min() * (1 + tolerance)]
    return Ridge(batch, momentum, lr, value, float(inside[0]), float(inside[-1]), bound.form)


def _tuned(bound: Tunable, momentum: Array, batch: Array, tokens: float) -> Array:
    steps = tokens / batch
    return np.asarray(bound.value(bound.best_lr(momentum, batch, steps), momentum, batch, steps))


def _flat(bound: Tunable) -> bool:
    """Whether the ridge is exactly flat, so that momentum and batch have closed forms."""
    return bound.form == "simplified" and bound.e0 == 0 and bound.init == "given" and bound.noise > 0


def _best_momentum(bound: Tunable, batch: Array, tokens: float) -> Array:
    if _flat(bound) and bound.kind in ("nonconvex", "frank-wolfe"):
        return np.asarray(np.clip(batch / critical_batch(bound, tokens), batch / tokens, 1.0))
    low = np.log(batch / tokens)
    # exp of a rounded 0 may exceed 1 by one ulp, which is outside momentum's range.
    tuned = lambda t: _tuned(bound, np.minimum(np.exp(t), 1.0), batch[:, None], tokens)  # noqa: E731
    return np.asarray(np.minimum(np.exp(minimise_scalar(tuned, low, 0 * low)), 1.0))


def _best_batch(bound: Tunable, tokens: float, momentum: float | None) -> float:
    if momentum is not None:
        held = np.asarray(momentum, dtype=float)
        check_momentum(held)
        at = lambda t: _tuned(bound, held, np.exp(t), tokens)  # noqa: E731
        return float(np.exp(minimise_scalar(at, np.zeros(1), np.log([tokens]))[0]))
    if _flat(bound):
        return float(np.clip(critical_batch(bound, tokens), 1.0, tokens))
    value = lambda t: _tuned(bound, _best_momentum(bound, np.exp(t), tokens), np.exp(t), tokens)  # noqa: E731
    return math.exp(minimise_nested(value, 0.0, math.log(tokens)))
