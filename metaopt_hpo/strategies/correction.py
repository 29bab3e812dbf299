"""What the adapted step size is multiplied with where a run commits to it, and when it does.

The meta-gradient weighs the loss at hand, where noise hurts at once and progress pays later, so the step size that a
run adapts to is not the peak rate that suits a run which ends in a cooldown. While the step size adapts it climbs for
some fifty steps, whatever the horizon, and then falls as the run goes on, the faster the wider the model is. So there
is a time at which the best peak rate is told most surely, from the end of the climb to twice that, and to an eighth of
longer runs: before it the climb is seen, after it the width. `python -m studies.one_run.corrections` sets best rates of
jobs that no other study has beside what runs adapt to then; all numbers below are from its table.
"""

from __future__ import annotations

from torch import nn

from metaopt_hpo.optim.rules import Rule
from metaopt_hpo.strategies.kinds import slowness

FIND, CLIMB, LATEST = 0.12, 100, 0.2
"""When a run commits: after this fraction of it, but not before so many steps, unless they are more than `LATEST` of
it. The step size is averaged over the second half of that time. Where the search is slowed (`kinds.slowness`, over
Lion) the climb takes longer by as much. In runs of 250 steps a later time scatters less and costs as much (whole runs
end 1.2 % above the best schedule with 0.2 and 0.34)."""

PRIOR, AT, FADES = 0.9, 1000, 0.53
"""Best peak rate over adapted step size in runs of `AT` steps and more, and the power of the horizon with which it
falls up to there."""

LARGEST = 2.0
"""The same at the most: runs under 250 steps were not measured."""

LATER = 0.5
"""Power with which it grows where a run is told to commit later: the step size goes on falling."""

NORMALISED = 2.0
"""Factor on it where BatchNorm takes the size out of the weights. Such weights grow under noise, and every later step
turns them less, so that they want more than the noise they show early says."""

SIGN, SIGN_AT, SIGN_RISES = 2.2, 2000, 0.37
"""The same over a rule that takes only signs (Lion), under its shorter ramp, in runs of `SIGN_AT` steps and more. In
shorter ones the slow search is above the best rate when it has to end, so the factor there rises with the horizon, with
that power: 2.0 was the best of four in the mean of whole runs of six jobs at 2,000 steps, and 1.0 to 1.4 at 500
(`python -m studies.one_run.lion`)."""

WARMUP, SIGN_WARMUP = 0.1, 0.05
"""Fraction of a run over which a ramp rises, and that over a rule that takes only signs. Under a longer one the adapted
step size is higher and scatters less. Over AdamW the two end within 0.2 % of each other in the mean of six other jobs,
each with its better correction (`python -m studies.one_run.ramps`); the shorter one's worst job loses more. Lion's
search is slow anyway, and a twentieth ends 0.1 to 1.0 % lower (`python -m studies.one_run.lion`, its second table)."""


def find_fraction(horizon: int, rule: Rule) -> float:
    """Fraction of a run of `horizon` steps after which its step size is committed to; `rule` moves the weights."""
    return max(FIND, min(LATEST, CLIMB / slowness(rule) / horizon))


def warmup_fraction(rule: Rule) -> float:
    """Fraction of a run over which its ramp rises; `rule` moves the weights."""
    return WARMUP if rule.uses_magnitude else SIGN_WARMUP


def prior_correction(horizon: int, find: float, rule: Rule, model: object = None) -> float:
    """What a run multiplies the adapted step size with.

    Args:
        horizon: steps of the run.
        find: fraction of it after which the step size is committed to.
        rule: what moves the weights.
        model: what is trained, if it is known as a module.
    """
    factor: float
    if rule.uses_magnitude:
        factor = min(LARGEST, PRIOR * max(1.0, AT / horizon) ** FADES)
    else:
        factor = PRIOR * SIGN * min(1.0, horizon / SIGN_AT) ** SIGN_RISES
    factor *= max(1.0, find / find_fraction(horizon, rule)) ** LATER
    if normalises(model):
        factor *= NORMALISED
    return factor


def normalises(model: object) -> bool:
    """Whether a model has BatchNorm layers."""
    if not isinstance(model, nn.Module):
        return False
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
