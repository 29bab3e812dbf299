"""From finished pilots to a recipe: lr, batch, weight decay, schedule, what loss to expect, and what that rests on.

The lr is that of the pilots' own linear model (`plan.estimate`, found rates and schedule runs each with their errors),
or of the full law where the table can bear one that warns of nothing and is surer. Weight decay follows from the
published timescale, for the target's schedule by the sum of its step sizes (`scaling.forms.decay`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.plan import decide
from metaopt_hpo.plan.band import predicted_end, reach
from metaopt_hpo.plan.costs import PlanError
from metaopt_hpo.plan.estimate import Z90, Estimate
from metaopt_hpo.plan.knowledge import Knowledge, Run, prior_rise
from metaopt_hpo.plan.lending import base_from
from metaopt_hpo.plan.model import Plan
from metaopt_hpo.plan.planner import STEP_LAW_BATCH
from metaopt_hpo.plan.recipe import Basis, Published, Range, Recipe
from metaopt_hpo.plan.run import NARROWEST, WIDEST
from metaopt_hpo.plan.words import percent, short
from metaopt_hpo.scaling import library
from metaopt_hpo.scaling.api import Law, fit
from metaopt_hpo.scaling.base.sources import base_of
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
    if records and not done:
        raise PlanError(
            f"no pilot has finished, so there is nothing to make a recipe of: {decide.why_none(records)}"
        )
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
    predicted = found is not None or reach(done, target.size, target.tokens)
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
        watch=_watch(loss if predicted else None, lr, target.tokens),
        stop=_stop(target.tokens, by_band=predicted),
        warnings=(
            *_warnings(basis, refused, doubts if not by_law else [], estimate, plan, len(done)),
            *(() if predicted else (_no_prediction(done),)),
        ),
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
    sd = plan.before.batch or 1.0  # no pilot has a part in that number
    return _about(usual, sd), sd


def _loss(found: Prediction | None, doubted: bool, done: Sequence[TrialRecord], plan: Plan) -> Range:
    """By the law, where it is doubted with what the pilots' ends say in its interval; without a law by those."""
    by_law = None if found is None else _range(found.loss)
    if by_law is not None and not doubted:
        return by_law
    if reach(done, plan.target.size, plan.target.tokens):
        centre, sd = predicted_end(done, plan.target.size, plan.target.tokens)
        ends = _about(math.exp(centre), sd)
    else:
        ends = _bound(done, plan)
    if by_law is None:
        return ends
    return Range(value=by_law.value, low=min(by_law.low, ends.low), high=max(by_law.high, ends.high))


def _bound(done: Sequence[TrialRecord], plan: Plan) -> Range:
    """What too few pilots say of the target's loss: no more than the best of them, how much less by the plan's priors.

    The fall from the pilot to the target is that of the base's mean floor, or of `knowledge.prior_rise` without one,
    and as uncertain as `plan` says. Without a base its centre is not shown: Chinchilla's shares are no estimate for a
    model of another kind.
    """
    target = plan.target
    shorter = [r for r in done if r.size <= target.size and r.planned_tokens <= target.tokens]
    best = min(shorter or done, key=lambda r: r.loss)
    highest = best.loss if shorter else math.inf
    lent = base_of(base_from(plan.base)) if plan.base else None
    there, here = (target.size, target.tokens), (best.size, best.planned_tokens)
    if lent is not None and lent.floors:
        fall = sum(float(f.log_loss(*there) - f.log_loss(*here)) for f in lent.floors) / len(lent.floors)
    else:
        fall = -prior_rise(*here, there)
    known = Knowledge(
        target.size, target.tokens, lr=plan.vary.lr, batch_given=target.batch is not None, base=lent
    )
    sd = known.after(Run(r.size, r.planned_tokens, r.batch, r.strategy) for r in done).loss
    about = _about(best.loss * math.exp(min(fall, 0.0)), sd)
    if shorter and (lent is None or not lent.floors):
        return Range(value=best.loss, low=about.low, high=best.loss, at_most=True)
    return replace(about, high=min(about.high, highest))


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


def _watch(loss: Range | None, lr: Range, tokens: float) -> tuple[str, ...]:
    expected = (
        "" if loss is None else f"held-out loss at the end: {loss.low:.4g} to {loss.high:.4g} nats per token"
    )
    return (
        *([f"{expected}; metaopt-hpo watch shows the band on the way"] if expected else []),
        "gradient norm: above the clipping norm on most steps after the warm-up, lr is too high",
        f"loss spikes that do not heal within {short(0.002 * tokens)} tokens: go back and take lr down to {lr.low:.3g}",
    )


def _stop(tokens: float, *, by_band: bool) -> tuple[str, ...]:
    band = f"at {short(0.1 * tokens)} tokens, where the loss lies above its band: a setting is wrong, not only lr"
    return (
        f"at {short(tokens)} tokens, after the decay; a budget that changes before that: Plan.rebudget",
        *([band] if by_band else []),
        "at any time, where the loss is not finite or has lost half of its progress",
    )


def _no_prediction(done: Sequence[TrialRecord]) -> str:
    best = min(r.loss for r in done)
    return (
        f"the loss is no prediction: {len(done)} pilot{'s' if len(done) > 1 else ''} that do not span sizes and tokens "
        f"give no law of it, its interval is made of the best pilot's own loss ({best:.4g}) and the plan's priors, and "
        "no stop rule rests on it"
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
    if not estimate.seen:
        out.append(
            "no pilot says anything of the lr, which is the middle of the plan's range: MetaOptimize runs must say "
            "what they found (config.optimizer, or found.json), and a size needs two runs of a schedule"
        )
    elif all(o.found for o in estimate.seen):
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
