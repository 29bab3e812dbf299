"""The one decision about a trial that runs, or is about to: may it still win?

Pure functions of a law, a history and the trial: no framework, no clock. The integrations only fetch numbers and carry
the answer out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from metaopt_hpo import markup
from metaopt_hpo.scaling.estimates import positive
from metaopt_hpo.scaling.fitting.alternatives import DRAWS
from metaopt_hpo.scaling.forecast import (
    DRIFT,
    CurveLike,
    chance_below,
    distribution,
    last_point,
    possible_ends,
    possible_excess,
)
from metaopt_hpo.scaling.law import Law
from metaopt_hpo.scaling.policy.conditioned import WEIGHED, Conditioned, Finished, conditioned
from metaopt_hpo.scaling.policy.history import History, Run
from metaopt_hpo.scaling.policy.refits import Fitted
from metaopt_hpo.scaling.sameness import at_least

Action = Literal["launch", "keep", "stop", "abstain"]

STOP_BELOW = 0.05
"""A run is stopped, or not launched, when its chance of beating the incumbent is below this."""

PATIENCE = 5
"""After so many stops in a row, at a size and above, the next run is let finish: a law that is wrong would otherwise
never see evidence against itself, for what it stops teaches it nothing."""

TEACHES = 10
"""Finished runs of a cell below the largest size, until which its runs are let finish: a law learns from them, they
cost little, and from ten on a cell counts in full (`Cells.cell_weight`). With 5, one search of four on Step Law 429 M ×
50 B stopped a pilot and needed three target runs more."""

UNSEEN = 0.25
"""Part of a run before which it is not judged where no finished run's curve says how runs fall: warm-up looks worse
than it is."""

OVERSHOOT = 1.5
"""A report later than this times the planned tokens counts something else."""

TRUST_FACTOR = 64.0
"""Further than this outside the fitted sizes or tokens the law gives no verdict."""

MARGIN = 0.01
"""Without an incumbent a run is measured against the law's own best: within this relative loss counts as good."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a run: `probability` is that of beating the incumbent, `reason` one sentence.

    Examples:
        >>> from metaopt_hpo.scaling import library
        >>> law = library.load("fitted-step-law").law
        >>> v = law.verdict(size=4e8, tokens=4e10, lr=0.1, batch=2**19, incumbent=2.3)
        >>> v.action in ("launch", "keep", "stop", "abstain")
        True
    """

    action: Action
    probability: float
    reason: str

    def _repr_html_(self) -> str:
        """For notebooks."""
        row = (self.action, f"{self.probability:.0%}", self.reason)
        return markup.table(("verdict", "chance to win", "reason"), [row], caption="What to do with the run")


def verdict(
    law: Law,
    *,
    size: float,
    tokens: float,
    lr: float,
    batch: float,
    incumbent: float | None = None,
    curve: CurveLike | None = None,
    finished: Iterable[Finished | tuple[float, float, float]] = (),
    stop_below: float = STOP_BELOW,
    target: Conditioned | None = None,
) -> Verdict:
    """Launch or keep a run that may win, stop one that cannot, abstain where the law does not know.

    Where runs of the same size and tokens have finished, these say how far the law is off there: from `ENOUGH` of them
    on a run is judged by the law conditioned on them (`policy.conditioned`), whatever else the law may be wrong about.

    It does not know far outside its trials, nor where it carries a caution that it may be wrong (`Law.at`). Where
    too few trials leave its optimum unsure, the chance of winning is that over all optima they leave open
    (`scaling.fitting.alternatives`), and a run that wins under hardly any of them is stopped.

    Args:
        law: a fitted law.
        size, tokens, lr, batch: the run, `tokens` being those it is to see in all.
        incumbent: the loss to beat at the same size and tokens. None measures the run against the law's own
            best there: before it starts, good is within 1 % of it; once it runs, its curve is measured against
            the top of the best's interval.
        curve: the run's reports so far; None before it starts.
        finished: runs of the same size and tokens: (lr, batch, final loss), or `Finished` with their curves.
        stop_below: chance of winning below which the run is stopped (default 0.05: one winner in twenty lost).
        target: the law conditioned on `finished` already.

    Examples:
        >>> from metaopt_hpo.scaling import library
        >>> law = library.load("fitted-step-law").law
        >>> from metaopt_hpo.scaling import verdict
        >>> verdict(law, size=4e8, tokens=4e10, lr=0.1, batch=2**19, incumbent=2.3).action
        'stop'
    """
    if incumbent is not None:
        positive("incumbent", incumbent)
    config = size, tokens, lr, batch
    mean, sd, excess = distribution(law, *config, curve)
    factor = law.domain.factor(size, tokens)
    if factor > TRUST_FACTOR:
        return Verdict("abstain", 0.5, f"{factor:.3g} times outside the fitted sizes or tokens")
    if (seen := target or conditioned(law, size, tokens, finished)) is not None:
        p, mean = seen.chance(config, curve, incumbent)
        best = seen.best if incumbent is None else min(seen.best, incumbent)
        return _said(p, mean, f"beating the best run here, {best:.4g}", curve, stop_below)
    doubts = law.at(size, tokens).doubts
    unknown = next((d for d in doubts if d.code not in WEIGHED or law.alternatives is None), None)
    if unknown is not None:
        return Verdict("abstain", 0.5, f"the law may be wrong here ({unknown.code}): {unknown.message}")
    if doubts and incumbent is not None and incumbent < (least := law.predict(size, tokens).loss.low):
        # doubted already, and its level is refuted
        reason = f"a run reached {incumbent:.4g}, below what the law holds possible here ({least:.4g})"
        return Verdict("abstain", 0.5, f"the law may be wrong here ({doubts[0].code}), and {reason}")
    if incumbent is None and curve is not None:
        # nobody has finished here: stop only what would end above all the law holds possible for the best
        incumbent = law.predict(size, tokens, batch).loss.high
    if incumbent is None:
        p = _within_margin(law, excess)
        if doubts:
            p = sum(_within_margin(law, e) for e in possible_excess(law, *config)) / DRAWS
        goal = f"within {MARGIN:.0%} of the best at this size"
    else:
        p = chance_below(incumbent, mean, sd)
        if doubts:
            p = sum(chance_below(incumbent, m, s) for m, s in possible_ends(law, *config, curve)) / DRAWS
        goal = f"a loss below {incumbent:.4g}"
    return _said(p, mean, goal, curve, stop_below)


def _said(p: float, mean: float, goal: str, curve: CurveLike | None, stop_below: float) -> Verdict:
    """The verdict on a run of chance `p` and expected ln loss `mean`."""
    if p < stop_below:
        return Verdict("stop", p, f"{p:.1%} chance of {goal}; {math.exp(mean):.4g} expected")
    action: Action = "launch" if curve is None else "keep"
    return Verdict(action, p, f"{p:.0%} chance of {goal}; {math.exp(mean):.4g} expected")


def _within_margin(law: Law, excess: float) -> float:
    """Chance of coming within `MARGIN` of the best, by the expected excess."""
    own = math.log1p(MARGIN)
    sd = math.sqrt(max(excess, 0.0) * 0.5 * own + law.noise**2)
    return 0.5 * math.erfc((excess - own) / (sd * math.sqrt(2.0)))


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a user may set about stopping.

    Attributes:
        stop_below: chance of winning below which a trial is stopped, or not launched.
        grace: fraction of its planned tokens for which a trial is left alone (default 0: from when finished runs'
            curves say how runs fall).
        grace_tokens: tokens for which it is left alone.
        min_size: trials from this size on are judged; None judges the largest size that has finished, and smaller
            ones once `TEACHES` have finished there.
    """

    stop_below: float = STOP_BELOW
    grace: float = 0.0
    grace_tokens: float = 0.0
    min_size: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a trial: launch, keep, stop, or abstain where the law does not know, and why.

    Attributes:
        probability: chance of beating the incumbent; one half where it is not known.
        spared: True where the law would stop the trial and it is let finish all the same.
        asked: True where the law was asked, so that `probability` is its own.
    """

    action: Action
    reason: str
    probability: float = 0.5
    spared: bool = False
    asked: bool = False


def decide(
    run: Run, history: History, fitted: Fitted, rule: Rule = Rule(), *, others: Sequence[History] = ()
) -> Decision:
    """The decision about a trial that is about to start (no curve) or has just reported.

    Args:
        run: the trial.
        history: trials of its search that have ended.
        fitted: the law in force (`refits.Refits`).
        rule: what the user has set.
        others: trials of earlier searches.
    """
    law = fitted.law
    if _at_its_end(run):
        return Decision("keep", "it has reached its planned end, and stopping it would save nothing")
    if run.self_tuning:
        return Decision("abstain", "its strategy finds its own learning rate")
    if law is None:
        return Decision("abstain", f"there is no law yet ({fitted.refusal})")
    if run.strategy and fitted.strategy and run.strategy != fitted.strategy:
        return Decision(
            "abstain", f"the law is of runs under {fitted.strategy!r}, and this one is under {run.strategy!r}"
        )
    if run.spared:
        return Decision("keep", "it is let finish, to check the law")
    started = bool(run.curve)
    if started and (young := _too_early(run, law, rule)):
        return Decision("abstain", young)
    best = history.best(run.size, run.tokens, run.batch)
    v = verdict(
        law,
        size=run.size,
        tokens=run.tokens,
        lr=run.lr,
        batch=run.batch,
        incumbent=best,
        curve=run.curve[-1:] if started else None,
        stop_below=rule.stop_below,
        target=history.conditioned(law, run),
    )
    if v.action != "stop":
        return Decision(v.action, v.reason, v.probability, asked=True)
    if _teaches(run, history, law, rule, others):
        action: Action = "abstain" if started else "launch"
        return Decision(action, f"runs of this size teach the law: {v.reason}", v.probability, asked=True)
    stops = history.stops_in_a_row(run.size)
    if stops >= PATIENCE and not history.sparing(run.size):
        reason = f"let finish after {stops} stops in a row, to check the law: {v.reason}"
        return Decision("keep" if started else "launch", reason, v.probability, spared=True, asked=True)
    return Decision("stop", v.reason, v.probability, asked=True)


def _teaches(run: Run, history: History, law: Law, rule: Rule, others: Sequence[History]) -> bool:
    """Whether the run is of those that the law learns from, and is let finish."""
    if rule.min_size is not None:
        return not at_least(run.size, rule.min_size)
    if at_least(run.size, law.domain.size[1]):
        return False
    done = sum(len(h.losses(run.size, run.tokens, run.batch)) for h in (history, *others))
    return done < TEACHES


def _at_its_end(run: Run) -> bool:
    """Whether a run has seen the tokens it was planned for, as far as they count as the same (`sameness`)."""
    seen = last_point(run.curve[-1:])
    return seen is not None and at_least(seen[0], run.tokens) and seen[0] <= OVERSHOOT * run.tokens


def _too_early(run: Run, law: Law, rule: Rule) -> str | None:
    """Why a running loss says nothing yet, or None."""
    seen = last_point(run.curve[-1:])
    if seen is None:
        return "its last loss is not a positive number"
    tokens = seen[0]
    if tokens > OVERSHOOT * run.tokens:
        return f"it reported {tokens:g} tokens and is planned for {run.tokens:g}"
    if tokens < max(rule.grace * run.tokens, rule.grace_tokens):
        return "it is in its grace"
    left = math.log(run.tokens / tokens)
    if law.fall is None:
        return (
            None if tokens >= UNSEEN * run.tokens else "no finished run's curve says how runs fall from here"
        )
    x, y, *_ = law.at(run.size, run.tokens)
    off_batch = math.log(run.batch) - y if law.surface.has_batch else 0.0
    fall = law.fall.at(left, math.log(run.lr) - x, off_batch)
    if fall is None:
        return "finished runs' curves do not reach back so far"
    if fall[1] > DRIFT * math.sqrt(left):
        return "runs still change ranks from here"
    return None
