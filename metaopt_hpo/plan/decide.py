"""What a running plan does next: a pure function of its pilots' records, so that a resumed plan decides the same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from metaopt_hpo.plan.costs import Cost, Hardware
from metaopt_hpo.plan.estimate import Estimate
from metaopt_hpo.plan.knowledge import compute_share
from metaopt_hpo.plan.model import LAW_LR, SELF_TUNING, Pilot, Plan, Uncertainty
from metaopt_hpo.plan.words import in_words, known
from metaopt_hpo.trials.record import TrialRecord

STEP = 2.0
"""Factor between the rates of neighbouring schedule runs of a cell."""

SIDES = 16
"""Such factors to either side of a cell's first run, before the gaps between its runs are filled."""

EDGE = 1.1
"""Factor from an end of the range within which a rate lies at that end."""

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


def finished(pilots: Sequence[TrialRecord]) -> tuple[TrialRecord, ...]:
    """The pilots that ran to their end."""
    return tuple(r for r in pilots if r.state == "complete")


def why_none(pilots: Sequence[TrialRecord]) -> str:
    """Why no pilot has finished, by the last: its state, reason and logs."""
    last = pilots[-1]
    logs = last.params.get("logs")
    return (
        f"{last.study} {last.state}{f', {last.reason}' if last.reason else ''}{f' ({logs})' if logs else ''}"
    )


def estimate(plan: Plan, records: Sequence[TrialRecord]) -> Estimate:
    """The law of lr from a plan's pilots."""
    return Estimate(records, plan.target.size, plan.target.tokens, lr=plan.vary.lr)


def together(plan: Plan, done: Sequence[str], records: Sequence[TrialRecord], most: int = 1) -> list[Choice]:
    """The next pilots, to be run at once: as many as pay, decided one after another before any of them has ended.

    Args:
        plan: the plan.
        done: names of the pilots that have been run, in order.
        records: theirs, in the same order.
        most: pilots at once; 1 decides with all that is known.

    Returns:
        At least one choice; a single one without a pilot where none is to be run.
    """
    choices: list[Choice] = []
    while len(choices) < most:
        choice = choose(plan, done, records, [c.pilot for c in choices if c.pilot is not None])
        if choice.pilot is None:
            return choices or [choice]
        choices.append(choice)
    return choices


def choose(
    plan: Plan, done: Sequence[str], records: Sequence[TrialRecord], under_way: Sequence[Pilot] = ()
) -> Choice:
    """The next pilot, or why there is none.

    Args:
        plan: the plan.
        done: names of the pilots that have been run, in order.
        records: theirs, in the same order.
        under_way: pilots that have been started, their rates settled.
    """
    started = {*done, *(p.name for p in under_way)}
    left = [p for p in plan.pilots if p.name not in started]
    if not left:
        return Choice(None, "all pilots are done")
    hardware = measured(plan.hardware, records)
    so_far = sum((hardware.cost(p.cost.flops, p.tokens) for p in under_way), spent(records, hardware))
    now = estimate(plan, records)
    sd = _after(under_way, now)
    worth = _worth(plan, left, now, under_way)
    if worth == 0:
        return Choice(
            None,
            f"the next pilots would cost more than they save: the lr is known {known(sd)}, "
            f"and would be known {known(_after([*under_way, left[0]], now))} after {left[0].name}",
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
    chosen, how = _settle(pilot, plan, dict(zip(done, records, strict=False)), under_way, now)
    then = _after([*under_way, pilot], now)
    so_known = f"{known(sd)} so far" if not under_way else f"{known(sd)} once those under way are done"
    return Choice(
        chosen,
        f"{how}; the target's lr is known {so_known}, {known(then)} after it, "
        f"for {pilot.cost.flops / plan.target_cost.flops:.1%} of the target's cost",
    )


def _worth(plan: Plan, left: Sequence[Pilot], now: Estimate, under_way: Sequence[Pilot]) -> int:
    """How many of the pilots that are left pay together: the least total of their cost and of what stays unknown."""
    best, found, cost = _share(_after(under_way, now), left[0].expected.batch), 0, 0.0
    for i, pilot in enumerate(left, 1):
        cost += pilot.cost.flops / plan.target_cost.flops
        total = cost + _share(_after([*under_way, *left[:i]], now), pilot.expected.batch)
        if total < best:
            best, found = total, i
    # before anything is known a plan's own judgement stands, which knows of batch and loss too
    if not now.seen and not under_way and found == 0 and left[0].pays:
        return 1
    return found


def _share(sd_lr: float, sd_batch: float) -> float:
    return compute_share(Uncertainty(lr=sd_lr, batch=sd_batch, weight_decay=0.0, loss=0.0))


def _after(pilots: Sequence[Pilot], now: Estimate) -> float:
    if not pilots:
        return now.rate.sd
    return now.sd_after([(p.size, p.tokens, p.strategy == SELF_TUNING) for p in pilots])


def _settle(
    pilot: Pilot, plan: Plan, records: Mapping[str, TrialRecord], under_way: Sequence[Pilot], now: Estimate
) -> tuple[Pilot, str]:
    """A pilot with its lr, and how it was chosen."""
    if pilot.strategy == SELF_TUNING:
        return pilot, "a run that finds its own lr"
    if pilot.lr != LAW_LR:
        return pilot, f"lr {pilot.lr:.3g} as planned"
    beside = [p for p in plan.pilots if p.lr == LAW_LR and _cell(p) == _cell(pilot)]
    tried = [(r.lr, _said(r)) for p in beside if (r := records.get(p.name))]
    tried += [
        (p.lr, math.nan) for p in under_way if isinstance(p.lr, float) and p.name in {b.name for b in beside}
    ]
    low, high = plan.vary.lr
    lr, how = _next_rate(tried, now.at(pilot.size, pilot.tokens).value, low, high)
    lr = float(f"{min(max(lr, low), high):.4g}")
    return replace(pilot, lr=lr), f"lr {lr:.3g}, {how}"


def _cell(p: Pilot) -> tuple[float, float, float, int]:
    return p.size, p.tokens, p.batch, p.seed


def _said(r: TrialRecord) -> float | None:
    """A run's loss; infinite where it diverged, None where it ended before it said anything of its lr."""
    if r.state == "diverged":
        return math.inf
    return r.loss if r.state == "complete" else None


def _next_rate(
    tried: Sequence[tuple[float, float | None]], law: float, low: float = 0.0, high: float = math.inf
) -> tuple[float, str]:
    """The next rate of a cell: the law's, then beyond the better end until the best one lies between two others.

    Args:
        tried: (lr, loss) of the cell's runs in order; NaN for one under way, infinite for one that diverged, None for
            one that failed: its rate may be tried once more.
        law: the law's rate for the cell.
        low, high: the range of rates.
    """
    if not tried:
        return law, "which is the law's for this size"
    rates = sorted(lr for lr, _ in tried)
    failed = Counter(lr for lr, loss in tried if loss is None)
    told = [(lr, loss) for lr, loss in tried if loss is not None]
    told += [(lr, math.inf) for lr, times in failed.items() if times > 1]
    if len(told) > 1 and not any(math.isnan(loss) for _, loss in told):
        rates = sorted({lr for lr, _ in told})
        best = min(told, key=lambda t: (t[1], t[0]))[0]  # of runs that all diverged, the lowest
        i = rates.index(best)
        if i == len(rates) - 1 and best < high / EDGE:
            return min(
                best * STEP, high
            ), f"a factor {STEP:g} above the best of this size, which was the highest"
        if i == 0 and best > low * EDGE:
            return max(
                best / STEP, low
            ), f"a factor {STEP:g} below the best of this size, which was the lowest"
        near = {rates[j] for j in (i - 1, i + 1) if 0 <= j < len(rates)}
        if near:
            beside = min((t for t in told if t[0] in near), key=lambda t: t[1])[0]
            return math.sqrt(best * beside), "between the two best of this size"
    # nothing says which side is better: to either side of the cell's first run, further out each time
    first = tried[0][0]
    for n in range(1, 1 + SIDES):
        for steps in (n, -n):
            lr = first * STEP**steps
            if low <= lr <= high and all(abs(math.log(lr / other)) > 0.1 for other in rates):
                side = "above" if steps > 0 else "below"
                return lr, f"a factor {STEP**n:g} {side} the first of this size"
    ends = [max(low, rates[0] / STEP), *rates, min(high, rates[-1] * STEP)]
    a, b = max(pairwise(ends), key=lambda ends: ends[1] / ends[0])
    return math.sqrt(a * b), "in the widest gap between those of this size"
