"""What a law answers at one size and number of tokens: lr, batch, weight decay and loss with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from metaopt_hpo.scaling.cautions import Fitted, doubts_of, place_cautions, spread_of
from metaopt_hpo.scaling.draws import Draws
from metaopt_hpo.scaling.estimates import Caution, Estimate, Prediction, normal_quantile
from metaopt_hpo.scaling.fitting.floor_error import own_error
from metaopt_hpo.scaling.forms.axes import Array, allowed
from metaopt_hpo.scaling.forms.decay import NAME, OPTIMUM_SCATTER, SOURCE, Decay, published_decay
from metaopt_hpo.scaling.forms.edge import Edge, edge_cautions
from metaopt_hpo.scaling.forms.floor import Floor
from metaopt_hpo.scaling.other import OtherSetting, other_setting, quantiles
from metaopt_hpo.trials.settings import word

UNKNOWN = 12.0
"""Half-width, ln units, at which an interval says nothing more: five decades either way."""


class Readable(Fitted, Protocol):
    """What a prediction is read from: the parts of a fitted law."""

    @property
    def draws(self) -> Draws: ...
    @property
    def floor(self) -> Floor: ...
    @property
    def decay(self) -> Decay | None: ...
    @property
    def edge(self) -> Edge | None: ...
    @property
    def open_valley(self) -> bool: ...
    @property
    def level(self) -> float: ...
    @property
    def noise(self) -> float: ...
    @property
    def widen(self) -> Mapping[str, float]: ...
    @property
    def scatter(self) -> Mapping[str, float]: ...
    def margin(self, variance: float) -> float: ...
    def moved(self, size: float, tokens: float, extra: Mapping[str, Any] | None) -> Array | None: ...
    def floor_draws(self, size: float, tokens: float, moved: Array | None = None) -> Array: ...
    def decayed(self, row: Array, extra: Mapping[str, Any] | None) -> float: ...


def predicted(
    law: Readable,
    size: float,
    tokens: float,
    given: float | None,
    extra: Mapping[str, Any] | None,
    other: OtherSetting | None = None,
) -> Prediction:
    """See `Law.predict`; arguments are checked, and `given` is the batch."""
    chosen = law.decay is not None and NAME not in (extra or {})
    if law.decay is not None and chosen:
        at = law.axes.design(*law.anchor(size, tokens))
        extra = {**(extra or {}), NAME: math.exp(law.decay.best(at))}
    row = law.axes.design(*law.anchor(size, tokens), extra)
    x, y = float(row @ law.surface.a), float(row @ law.surface.b)
    dx, dy = law.draws.a @ row - x, law.draws.b @ row - y
    if other is not None:
        x, dx = x + other.offset, dx + other.spread * quantiles(dx.size)
    moved = law.moved(size, tokens, extra)
    f = float(law.floor.log_loss(size, tokens, moved))
    df = law.floor_draws(size, tokens, moved) - f
    if other is not None:
        df = df + other.level * quantiles(df.size)
    excess = law.decayed(row, extra)
    if given is None and law.open_valley:
        low, high = law.domain.batch
        given = min(max(math.exp(y), low), high)
    if given is not None and law.surface.has_batch:
        v = math.log(given) - y
        shift = law.surface.lr_given_batch(v)
        excess += float(law.surface.excess(np.array(shift), np.array(v)))
        own = -float(law.surface.h[1] / law.surface.h[0])
        dx = dx + law.draws.slope * (v - dy) - own * v
        x, y = x + shift, math.log(given)
        dy = np.zeros_like(dy)
    elif given is not None:
        y, dy = math.log(given), np.zeros_like(dy)
    elif not law.surface.has_batch:
        dy = np.zeros_like(dy)
    tau = law.scatter
    lr = estimated(law, x, dx, law.widen["lr"], tau["lr" if given is None else "lr_given_batch"])
    best_batch = estimated(law, y, dy, law.widen["batch"], tau["batch"] if dy.any() else 0.0)
    shift, chance = below_edge(law, row, law.margin(float(dx.var())), x, y)
    value = min(lr.value * math.exp(shift), lr.high)
    lr = Estimate(value, min(lr.low, value), lr.high)
    own = math.hypot(own_error(law.floor, law.domain, size, tokens), law.noise)
    loss = estimated(law, f + excess, df, law.widen["loss"], own)
    sx, sy, rho = spread_of(dx * law.widen["lr"], dy * law.widen["batch"])
    answer = math.log(value) - (other.offset if other is not None else 0.0), y
    doubts = doubts_of(law, size, tokens, answer, given=given is not None, extra=extra)
    cautions = (
        *law.warnings,
        *place_cautions(law, size, tokens, given),
        *(d for d in doubts if d not in law.warnings),
        *edge_cautions(chance),
        *(other.cautions if other is not None else ()),
    )
    decay, source, said = _weight_decay(law, row, lr, best_batch, (size, tokens), extra, other, chosen)
    return Prediction(
        size,
        tokens,
        lr,
        best_batch,
        loss,
        (*cautions, *said),
        (sx, sy, rho),
        chance,
        decay,
        source,
    )


def _weight_decay(
    law: Readable,
    row: Array,
    lr: Estimate,
    batch: Estimate,
    place: tuple[float, float],
    extra: Mapping[str, Any] | None,
    other: OtherSetting | None,
    chosen: bool,
) -> tuple[Estimate, str, tuple[Caution, ...]]:
    """The weight decay of a prediction, what it rests on, and what is to be said of it."""
    if law.decay is not None and chosen:
        low, high = law.decay.span
        about = estimated(
            law, law.decay.best(row), law.decay.deviations(row), law.widen["lr"], OPTIMUM_SCATTER
        )
        if not law.decay.outside(row):
            return about, "trials", ()
        message = (
            f"the best weight decay lies outside those that were run, {low:.3g} to {high:.3g}: widen "
            "their range"
        )
        return about, "trials", (Caution("weight-decay-outside", message),)
    if extra and NAME in extra:
        asked = float(extra[NAME])
        return Estimate(asked, asked, asked), "given", ()
    if other is not None and other.name == "schedule":
        schedule = other.value
    else:
        known = law.axes.levels.get("schedule", ("",))
        schedule = str((extra or {}).get("schedule", law.axes.defaults.get("schedule", known[0])))
    value, spread = published_decay(*place, lr.value, batch.value, schedule)
    z = normal_quantile(law.level)
    below = math.hypot(z * spread, math.log(lr.high / lr.value), math.log(batch.value / batch.low))
    above = math.hypot(z * spread, math.log(lr.value / lr.low), math.log(batch.high / batch.value))
    return Estimate(value, value * math.exp(-below), value * math.exp(min(above, UNKNOWN))), SOURCE, ()


def below_edge(law: Readable, row: Array, shift: float, x: float, y: float) -> tuple[float, float]:
    """(shift of ln lr once divergence counts, its chance there) about the best lr x at the batch y, logarithms."""
    if law.edge is None:
        return shift, 0.0
    away, v = x - float(row @ law.surface.a), (y - float(row @ law.surface.b)) * law.surface.has_batch
    t = row[1 : 1 + len(law.axes.scale_names)]
    found, chance = law.edge.lower(away + shift, float(law.surface.h[0]), v, t)
    return found - away, chance


def estimated(law: Readable, value: float, deviation: Array, widen: float, scatter: float) -> Estimate:
    """A value from its logarithm, with the interval of draws of its deviation and of a scatter beside them."""
    tail = 0.5 * (1.0 - law.level)
    low, high = np.quantile(deviation, [tail, 1.0 - tail]) * widen
    extra = normal_quantile(law.level) * scatter * widen
    low, high = max(min(float(low), 0.0), -UNKNOWN), min(max(float(high), 0.0), UNKNOWN)
    return Estimate(
        math.exp(value),
        math.exp(value - math.hypot(low, extra)),
        math.exp(value + math.hypot(high, extra)),
    )


def check_extra(law: Readable, extra: Mapping[str, Any] | None) -> None:
    """ValueError naming a coordinate, or a word, that the law does not have."""
    unknown = [k for k in extra or {} if k not in law.axes.defaults]
    if unknown:
        known = ", ".join(law.axes.defaults) or "none"
        raise ValueError(
            f"extra holds {unknown[0]!r}, which is no coordinate of this law; there are: {known}"
        )
    for name, value in (extra or {}).items():
        levels = law.axes.levels.get(name)
        if levels is None:
            low, high = allowed(name)
            try:
                number = np.asarray(math.nan if isinstance(value, str) else value, dtype=float)
            except (TypeError, ValueError):
                number = np.array(math.nan)
            if not ((number > low) & (number < high)).all():
                raise ValueError(f"{name} must be a number in ({low:g}, {high:g}), got {value!r}")
        if levels is not None and not set(np.unique(np.asarray(value)).tolist()) <= set(levels):
            raise ValueError(
                f"{name} must be one of {', '.join(levels)}, which the trials had, got {value!r}"
            )


def settled(
    law: Readable, extra: Mapping[str, Any] | None, schedule: str | None
) -> tuple[dict[str, Any], OtherSetting | None]:
    """(further coordinates in the law's words, a schedule that the trials did not have)."""
    asked = {k: word(k, v) if isinstance(v, str) else v for k, v in (extra or {}).items()}
    if schedule is not None:
        asked["schedule"] = word("schedule", schedule)
    other = other_setting("schedule", asked, law.axes)
    check_extra(law, asked)
    return asked, other
