"""What a running plan does next: a pure function of its pilots' records, so that a resumed plan decides the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from metaopt_hpo.plan.costs import Cost, Hardware
from metaopt_hpo.plan.estimate import Estimate
from metaopt_hpo.plan.knowledge import compute_share
from metaopt_hpo.plan.model import LAW_LR, SELF_TUNING, Pilot, Plan, Uncertainty
from metaopt_hpo.plan.words import in_words, known
from metaopt_hpo.trials.record import TrialRecord

STEPS_ASIDE = (0.0, math.log(2.0), -math.log(2.0), 2 * math.log(2.0), -2 * math.log(2.0))
"""Where the schedule runs of one cell lie about what the law says of it, ln lr: the middle, then to either side."""

SLACK = 1e-9


@dataclass(frozen=True)
class Choice:
    """The next pilot with its lr settled, or None and why."""

    pilot: Pilot | None
    reason: str


def measured(hardware: Hardware, records: Sequence[TrialRecord]) -> Hardware:
    """The hardware with the throughput that runs really had; the largest run counts, small ones leave devices idle."""
    timed = [r for r in records if r.state == "complete" and r.seconds > 0 and r.cost > 0]
    if not timed:
        return hardware
    largest = max(timed, key=lambda r: r.cost)
    return replace(hardware, measured_flops=largest.cost / largest.seconds)


def spent(records: Sequence[TrialRecord], hardware: Hardware) -> Cost:
    """What runs have cost: measured where they say it, failed and diverged ones included."""
    total = Cost()
    for r in records:
        flops = r.cost if math.isfinite(r.cost) else 6.0 * r.size * r.tokens
        cost = hardware.cost(flops, r.tokens)
        if r.seconds > 0:
            hours = r.seconds / 3600.0 * hardware.devices
            joules = r.joules if r.joules > 0 else hours * 3600.0 * hardware.watts
            cost = replace(cost, gpu_hours=hours, joules=joules, money=hours * hardware.price)
        total += cost
    return total


def estimate(plan: Plan, records: Sequence[TrialRecord]) -> Estimate:
    """The law of lr from a plan's pilots."""
    return Estimate(records, plan.target.size, plan.target.tokens, lr=plan.vary.lr)


def choose(plan: Plan, done: Sequence[str], records: Sequence[TrialRecord]) -> Choice:
    """The next pilot, or why there is none.

    Args:
        plan: the plan.
        done: names of the pilots that have been run, in order.
        records: theirs.
    """
    left = [p for p in plan.pilots if p.name not in set(done)]
    if not left:
        return Choice(None, "all pilots are done")
    hardware = measured(plan.hardware, records)
    so_far = spent(records, hardware)
    now = estimate(plan, records)
    worth = _worth(plan, left, now)
    if worth == 0:
        return Choice(
            None,
            f"the next pilots would cost more than they save: the lr is known {known(now.rate.sd)}, "
            f"and would be known {known(_after(left[:1], now))} after {left[0].name}",
        )
    pilot = left[0]
    next_cost = hardware.cost(pilot.cost.flops, pilot.tokens)
    total = plan.budget.spent(so_far + next_cost, plan.target_cost)
    if total > plan.budget.amount * (1 + SLACK):
        return Choice(
            None,
            f"{pilot.name} would exceed the budget: {in_words(total, plan.budget)} in all, of "
            f"{plan.budget.text or in_words(plan.budget.amount, plan.budget)}",
        )
    chosen, how = _settle(pilot, plan, done, now)
    then = _after([pilot], now)
    gain = f"the target's lr is known {known(now.rate.sd)} so far, {known(then)} after it"
    return Choice(
        chosen, f"{how}; {gain}, for {pilot.cost.flops / plan.target_cost.flops:.1%} of the target's cost"
    )


def _worth(plan: Plan, left: Sequence[Pilot], now: Estimate) -> int:
    """How many of the pilots that are left pay together: the least total of their cost and of what stays unknown."""
    best, found, cost = _share(now.rate.sd, left[0].expected.batch), 0, 0.0
    for i, pilot in enumerate(left, 1):
        cost += pilot.cost.flops / plan.target_cost.flops
        total = cost + _share(_after(left[:i], now), pilot.expected.batch)
        if total < best:
            best, found = total, i
    # before anything is known a plan's own judgement stands, which knows of batch and loss too
    if not now.seen and found == 0 and left[0].pays:
        return 1
    return found


def _share(sd_lr: float, sd_batch: float) -> float:
    return compute_share(Uncertainty(lr=sd_lr, batch=sd_batch, weight_decay=0.0, loss=0.0))


def _after(pilots: Sequence[Pilot], now: Estimate) -> float:
    return now.sd_after([(p.size, p.tokens, p.strategy == SELF_TUNING) for p in pilots])


def _settle(pilot: Pilot, plan: Plan, done: Sequence[str], now: Estimate) -> tuple[Pilot, str]:
    """A pilot with its lr, and how it was chosen."""
    if pilot.strategy == SELF_TUNING:
        return pilot, "a run that finds its own lr"
    if pilot.lr != LAW_LR:
        return pilot, f"lr {pilot.lr:.3g} as planned"
    by_name = {p.name: p for p in plan.pilots}
    beside = [
        by_name[n]
        for n in done
        if n in by_name
        and by_name[n].lr == LAW_LR
        and (by_name[n].size, by_name[n].tokens, by_name[n].batch, by_name[n].seed)
        == (pilot.size, pilot.tokens, pilot.batch, pilot.seed)
    ]
    # the centre stays where the cell's first run put it: the law moves, and a grid should not
    low, high = plan.vary.lr
    centre = now.at(pilot.size, pilot.tokens).value
    aside = STEPS_ASIDE[len(beside) % len(STEPS_ASIDE)]
    lr = min(max(centre * math.exp(aside), low), high)
    where = (
        "which is"
        if aside == 0
        else f"a factor {math.exp(abs(aside)):.3g} {'above' if aside > 0 else 'below'}"
    )
    return replace(pilot, lr=float(f"{lr:.4g}")), f"lr {lr:.3g}, {where} the law's for this size"
