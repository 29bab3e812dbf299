"""From finished pilots to a recipe: lr, batch, weight decay, schedule, what loss to expect, and what that rests on.

The lr is that of the pilots' own linear model (`plan.estimate`, found rates and schedule runs each with their errors),
or of the full law where the table can bear one that warns of nothing and is surer. Weight decay follows from the
published timescale, for the target's schedule by the sum of its step sizes (`scaling.forms.decay`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.plan import decide
from metaopt_hpo.plan.band import LEAST, predicted_end
from metaopt_hpo.plan.costs import PlanError
from metaopt_hpo.plan.estimate import Z90, Estimate
from metaopt_hpo.plan.lending import base_from
from metaopt_hpo.plan.model import Plan
from metaopt_hpo.plan.planner import STEP_LAW_BATCH
from metaopt_hpo.plan.recipe import Basis, Published, Range, Recipe
from metaopt_hpo.plan.run import NARROWEST, WIDEST
from metaopt_hpo.plan.words import percent, short
from metaopt_hpo.scaling import library
from metaopt_hpo.scaling.api import Law, fit
from metaopt_hpo.scaling.cautions import WRONG
from metaopt_hpo.scaling.estimates import LawRefused, Prediction
from metaopt_hpo.scaling.forms.decay import published_decay
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable

if TYPE_CHECKING:
    from metaopt_hpo.scaling.estimates import Estimate as Interval

WARMUP_STEPS = 2000
"""Longest warm-up: the schedules' own fraction of a short run, no more of a long one."""

FALSE_CONFIDENCE = (12.0, 5, 100)
"""Distance in size, laws that were wrong without a warning, laws: tables of known truth, a target 12 times the largest
size (`docs/studies/laws`, "Worlds of known truth"). Nothing was measured farther out."""

FAR = 100.0
"""Factor outside a published law's own runs from which its loss is not quoted."""

RAMP_FROM = 1e10
"""Tokens of a run from which a batch ramp is worth its trouble: the noise scale is small at first."""

LOSS_SD = 0.05
"""Standard deviation of ln loss where too few pilots are done to predict one."""


Fitted = tuple[Law | None, str]
"""A law, or why there is none."""


def recipe(plan: Plan, trials: TrialTable | Sequence[TrialRecord], *, fitted: Fitted | None = None) -> Recipe:
    """How to train a plan's target, from its pilots.

    Args:
        plan: says what the target is.
        trials: pilots that have run; ones of the target itself are left out.
        fitted: the law of these trials where it is known already.

    Raises:
        PlanError: none has finished.
    """
    rows = trials.records() if isinstance(trials, TrialTable) else list(trials)
    target = plan.target
    records = [r for r in rows if r.size < target.size * 0.999 or r.planned_tokens < target.tokens * 0.999]
    done = [r for r in records if r.state == "complete" and math.isfinite(r.loss)]
    if not done:
        raise PlanError(
            "no pilot has finished, so there is nothing to make a recipe of; run: metaopt-hpo run plan.toml"
        )
    estimate = decide.estimate(plan, records)
    law, refused = fitted or law_of(plan, records)
    found = None if law is None else _predict(law, plan)
    doubts = [] if found is None else [w for w in found.warnings if w.code in WRONG]
    rate = estimate.rate
    lr = Range(value=rate.value, low=rate.low, high=rate.high)
    by_law = found is not None and not doubts and _width(found.lr) < math.log(rate.high / rate.low)
    if by_law and found is not None:
        lr = _range(found.lr)
    batch, sd_batch = _batch(plan, law, found)
    sd_lr = math.log(lr.high / lr.low) / (2 * Z90)
    decay, sd_decay = published_decay(target.size, target.tokens, lr.value, batch.value, target.schedule)
    loss = _loss(found, bool(doubts), done, plan)
    basis = _basis(plan, done, estimate)
    return Recipe(
        target=target,
        lr=lr,
        batch=batch,
        ramp=_ramp(plan, batch.value),
        weight_decay=_about(decay, math.sqrt(sd_lr**2 + sd_batch**2 + sd_decay**2)),
        warmup=_warmup(plan, batch.value),
        cooldown=_cooldown(plan),
        loss=loss,
        within=min(max(lr.high / lr.value, NARROWEST), WIDEST),
        cost=plan.target_cost,
        basis=basis,
        watch=_watch(loss, lr, target.tokens),
        stop=_stop(loss, target.tokens),
        warnings=_warnings(basis, refused, doubts if not by_law else [], estimate, plan, len(done)),
    )


def law_of(plan: Plan, records: Sequence[TrialRecord]) -> Fitted:
    """The full law of a plan's pilots, or why there is none."""
    table = TrialTable.from_records(list(records), warn=False)
    try:
        return fit(table, use="all", base=base_from(plan.base) or None, allow_weak=True, draws=100), ""
    except (LawRefused, MetaOptError, ValueError) as error:
        return None, str(error)


def _predict(law: Law, plan: Plan) -> Prediction | None:
    try:
        return law.predict(size=plan.target.size, tokens=plan.target.tokens, batch=plan.target.batch)
    except MetaOptError:
        return None


def _width(e: Interval) -> float:
    return math.log(e.high / e.low)


def _range(e: Interval) -> Range:
    return Range(value=e.value, low=min(e.low, e.value), high=max(e.high, e.value))


def _about(value: float, sd: float) -> Range:
    return Range(value=value, low=value * math.exp(-Z90 * sd), high=value * math.exp(Z90 * sd))


def _batch(plan: Plan, law: Law | None, found: Prediction | None) -> tuple[Range, float]:
    """The batch, and its standard deviation: given, the law's, or Step Law's."""
    target = plan.target
    if target.batch is not None:
        return Range(value=target.batch, low=target.batch, high=target.batch), 0.0
    if law is not None and found is not None and law.surface.has_batch and not law.open_valley:
        return _range(found.batch), _width(found.batch) / (2 * Z90)
    usual = STEP_LAW_BATCH[0] * target.tokens ** STEP_LAW_BATCH[1]
    sd = plan.expected.batch or 1.0
    return _about(usual, sd), sd


def _loss(found: Prediction | None, doubted: bool, done: Sequence[TrialRecord], plan: Plan) -> Range:
    """By the law, where it is doubted with the trend of the pilots' ends in its interval; without a law by that."""
    by_law = None if found is None else _range(found.loss)
    if by_law is not None and not doubted:
        return by_law
    if len(done) >= LEAST:
        centre, sd = predicted_end(done, plan.target.size, plan.target.tokens)
        trend = _about(math.exp(centre), sd)
    else:
        trend = _about(min(r.loss for r in done), LOSS_SD)
    if by_law is None:
        return trend
    return Range(value=by_law.value, low=min(by_law.low, trend.low), high=max(by_law.high, trend.high))


def _warmup(plan: Plan, batch: float) -> float:
    from metaopt_hpo.strategies import make

    share = float(getattr(make(plan.target.schedule, lr=1e-3), "warmup", 0.05))
    return min(share * plan.target.tokens, WARMUP_STEPS * batch)


def _cooldown(plan: Plan) -> float:
    from metaopt_hpo.strategies import make

    if plan.target.schedule == "constant":
        return 0.0
    share = getattr(make(plan.target.schedule, lr=1e-3), "cooldown", None)
    return float(share) * plan.target.tokens if share is not None else plan.target.tokens


def _ramp(plan: Plan, batch: float) -> tuple[tuple[float, float], ...]:
    if plan.target.batch is not None or plan.target.tokens < RAMP_FROM:
        return ()
    tokens = plan.target.tokens
    return ((0.0, batch / 4), (0.01 * tokens, batch / 2), (0.03 * tokens, batch))


def _basis(plan: Plan, done: Sequence[TrialRecord], estimate: Estimate) -> Basis:
    largest = max(done, key=lambda r: (r.size, r.planned_tokens))
    tokens = max(r.planned_tokens for r in done)
    size, target = plan.target.size, plan.target
    distance, wrong, of = FALSE_CONFIDENCE
    times = size / largest.size
    where = f"at {distance:g} times the largest size" + (
        "" if times <= distance else f"; this is {times:.3g} times"
    )
    anchor = (largest.size, largest.planned_tokens, estimate.at(largest.size, largest.planned_tokens).value)
    return Basis(
        runs=len(done),
        size=largest.size,
        tokens=tokens,
        ln_size=math.log(times),
        ln_tokens=math.log(target.tokens / tokens),
        wrong=wrong / of,
        wrong_source=f"{wrong} of {of} laws on tables of known truth, {where}",
        published=tuple(p for n in library.names() if (p := _published(n, plan, anchor)) is not None),
    )


def _published(name: str, plan: Plan, anchor: tuple[float, float, float]) -> Published | None:
    law = library.load(name)
    if not isinstance(law, library.PublishedLaw):
        return None
    size, tokens, batch = plan.target.size, plan.target.tokens, plan.target.batch
    needs_anchor = law.lr is not None and math.isnan(law.lr.coefficient)
    values: dict[str, float | None] = {"lr": None, "batch": None, "loss": None}
    for what in values:
        try:
            if what == "lr":
                values[what] = law.predict_lr(size, tokens, batch=batch, anchor=anchor)
            elif what == "batch" and law.batch is not None and not math.isnan(law.batch.coefficient):
                values[what] = law.predict_batch(size, tokens)
            elif what == "loss":
                values[what] = law.predict_loss(size, tokens)
        except MetaOptError:
            continue
    said = f"{name}, from the largest pilot" if needs_anchor and values["lr"] else name
    place = {"size": size, "tokens": tokens, "compute": 6.0 * size * tokens}
    beyond = [max(place[k] / high, low / place[k]) for k, (low, high) in law.domain.items() if k in place]
    if beyond and max(beyond) > FAR:
        values["loss"] = None  # a floor extrapolated so far is no number to compare with
    if beyond and max(beyond) > 1.0:
        said += f" ({max(beyond):.2g} times outside its own runs)"
    return Published(name=said, **values) if any(values.values()) else None


def _watch(loss: Range, lr: Range, tokens: float) -> tuple[str, ...]:
    return (
        f"held-out loss at the end: {loss.low:.4g} to {loss.high:.4g} nats per token; metaopt-hpo watch shows the band "
        "on the way",
        "gradient norm: above the clipping norm on most steps after the warm-up, lr is too high",
        f"loss spikes that do not heal within {short(0.002 * tokens)} tokens: go back and take lr down to {lr.low:.3g}",
    )


def _stop(loss: Range, tokens: float) -> tuple[str, ...]:
    return (
        f"at {short(tokens)} tokens, after the decay; a budget that changes before that: Plan.rebudget",
        f"at {short(0.1 * tokens)} tokens, where the loss lies above its band: a setting is wrong, not only lr",
        "at any time, where the loss is not finite or has lost half of its progress",
    )


def _warnings(
    basis: Basis, refused: str, doubts: Sequence[object], estimate: Estimate, plan: Plan, done: int
) -> tuple[str, ...]:
    out = []
    times = math.exp(basis.ln_size)
    if times > FALSE_CONFIDENCE[0]:
        out.append(
            f"the target is {times:.3g} times the largest pilot in parameters and {math.exp(basis.ln_tokens):.3g} "
            f"times the longest in tokens; predictions were checked up to {FALSE_CONFIDENCE[0]:g} times"
        )
    if refused:
        out.append(f"no full law: {refused}")
    out += [f"the full law was not used: {getattr(d, 'message', d)}" for d in doubts]
    if all(o.found for o in estimate.seen):
        sd = estimate.offset[1]
        out.append(
            "every pilot found its own lr with MetaOptimize; how far such rates lie from a tuned one is not measured "
            f"here ({percent(sd)} is allowed for)"
        )
    if done < 3:
        out.append(f"only {done} pilot{'s' if done > 1 else ''} finished: exponents are published ones")
    edge_low, edge_high = plan.vary.lr
    if not edge_low * 1.01 < estimate.rate.value < edge_high / 1.01:
        out.append(f"the lr lies at the edge of the plan's range, {edge_low:g} to {edge_high:g}: widen it")
    return tuple(out)
