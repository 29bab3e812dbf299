"""The one decision about a trial that runs, or is about to: may it still win?

Pure functions of a law, a history and the trial: no framework, no clock. The integrations only fetch numbers and carry
the answer out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from metaopt_hpo.scaling.estimates import positive
from metaopt_hpo.scaling.forecast import CurveLike, chance_below, distribution
from metaopt_hpo.scaling.law import Law

Action = Literal["launch", "keep", "stop", "abstain"]

STOP_BELOW = 0.05
"""A run is stopped, or not launched, when its chance of beating the incumbent is below this."""

PATIENCE = 5
"""After so many stops at one size in a row the next run is let finish: a law that is wrong would otherwise never see
evidence against itself, for what it stops teaches it nothing."""

TRUST_FACTOR = 64.0
"""Further than this outside the fitted sizes or tokens the law gives no verdict."""

MARGIN = 0.01
"""Without an incumbent a run is measured against the law's own best: within this relative loss counts as good."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a run: `probability` is that of beating the incumbent, `reason` one sentence."""

    action: Action
    probability: float
    reason: str


def verdict(
    law: Law,
    *,
    size: float,
    tokens: float,
    lr: float,
    batch: float,
    incumbent: float | None = None,
    curve: CurveLike | None = None,
    stop_below: float = STOP_BELOW,
) -> Verdict:
    """Launch or keep a run that may win, stop one that cannot, abstain where the law does not know.

    It does not know far outside its trials, nor where it carries a caution that it may be wrong (`Place.doubts`).

    Args:
        law: a fitted law.
        size, tokens, lr, batch: the run, `tokens` being those it is to see in all.
        incumbent: the loss to beat at the same size and tokens. None measures the run against the law's own
            best there: good is within 1 % of it.
        curve: the run's reports so far; None before it starts.
        stop_below: chance of winning below which the run is stopped (default 0.05: one winner in twenty lost).
    """
    if incumbent is not None:
        positive("incumbent", incumbent)
    mean, sd, excess = distribution(law, size, tokens, lr, batch, curve)
    factor = law.domain.factor(size, tokens)
    if factor > TRUST_FACTOR:
        return Verdict("abstain", 0.5, f"{factor:.3g} times outside the fitted sizes or tokens")
    doubts = law.at(size, tokens).doubts
    if doubts:
        return Verdict("abstain", 0.5, f"the law may be wrong here ({doubts[0].code}): {doubts[0].message}")
    if incumbent is None:
        own = math.log1p(MARGIN)
        sd = math.sqrt(max(excess, 0.0) * 0.5 * own + law.noise**2)
        p = 0.5 * math.erfc((excess - own) / (sd * math.sqrt(2.0)))
        goal = f"within {MARGIN:.0%} of the best at this size"
    else:
        p = chance_below(incumbent, mean, sd)
        goal = f"a loss below {incumbent:.4g}"
    if p < stop_below:
        return Verdict("stop", p, f"{p:.1%} chance of {goal}; {math.exp(mean):.4g} expected")
    action: Action = "launch" if curve is None else "keep"
    return Verdict(action, p, f"{p:.0%} chance of {goal}; {math.exp(mean):.4g} expected")


def comparable(strategy: str, own_from: float, other: str, other_from: float, fraction: float) -> bool:
    """Whether a running loss may be compared with that of another run at equal tokens.

    Runs of one strategy may at any time. Runs of different strategies may once both have passed the part in which
    their loss says little of their end: a run that finds its own learning rate starts low, and one that cools down
    late stands above the others until then.

    Args:
        strategy, own_from: name of the run's strategy, and the fraction of the run from which it is comparable.
        other, other_from: the same of the other run.
        fraction: part of its planned tokens that the run has seen.
    """
    return strategy == other or fraction >= max(own_from, other_from)
