"""A run's tokens as a framework's integer step, and back.

A step *is* a token count, so that trials of all sizes meet at equal tokens. Databases that keep steps in 32 bits
(PostgreSQL and MySQL under Optuna) hold no more than 2,147,483,647 of them; a step above `EXACT` therefore counts
thousandths of an octave beyond it. Steps still grow with tokens, equal tokens still give equal steps, and what was
written before (token counts below the limit) reads as it did. The exact count is kept with the trial's record.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

STEP_MAX = 2**31 - 1
"""The largest step of a 32-bit column."""

EXACT = 2**31 - 2**16
"""Up to here a step is the number of tokens itself."""

PER_OCTAVE = 1000
"""Steps per doubling of tokens beyond `EXACT`: neighbours differ by 0.07 %."""


def step_of(tokens: float) -> int:
    """The step at which a framework is told of a point after `tokens` tokens."""
    if tokens <= EXACT:
        return round(tokens)
    return min(EXACT + math.ceil(PER_OCTAVE * math.log2(tokens / EXACT)), STEP_MAX)


def tokens_of(step: float) -> float:
    """The tokens of a step: exact up to `EXACT`, to 0.07 % beyond."""
    if step <= EXACT or step > STEP_MAX:  # beyond a 32-bit column nothing was compressed
        return float(step)
    return EXACT * math.exp2((step - EXACT) / PER_OCTAVE)


@dataclass(frozen=True, slots=True)
class Reports:
    """A run's reports by tokens seen.

    Attributes:
        points: (tokens, value) in order; empty where it is not known how many tokens a step is.
        problem: what is wrong with the steps, and what to do; empty where nothing is.
        by_epoch: True where steps seem to be epochs, of which the length is not known.
    """

    points: tuple[tuple[float, float], ...] = ()
    problem: str = ""
    by_epoch: bool = False


OVERSHOOT = 1.5
"""A step of more than so many times the planned tokens counts something else."""


def by_tokens(
    reports: Mapping[int, float], planned: float, batch: float | None = None, epoch: float | None = None
) -> Reports:
    """Reports by tokens: a step is a token count, or an epoch of known length.

    Steps below one optimizer step's tokens are no token counts: most objectives report by epoch. Where it is known how
    many tokens an epoch has, they are taken as that; epochs from 0 are those that have been done by then.

    Args:
        reports: step → value.
        planned: tokens of the whole run.
        batch: tokens per optimizer step, where that is known.
        epoch: tokens of an epoch, where steps may be epochs.
    """
    steps = sorted(reports)
    if not steps:
        return Reports()
    least = 0.5 * min(batch, planned) if batch is not None else 1e-6 * planned
    positive = [s for s in steps if s > 0]
    if steps != [0] and positive and positive[0] < least:
        if epoch is None:
            return Reports(
                problem=f"it reports at step {positive[0]}, which is no number of tokens (an optimizer step is "
                f"{2 * least:g}); report tokens seen as the step",
                by_epoch=True,
            )
        done = 1 if steps[0] == 0 else 0
        return Reports(tuple((epoch * (s + done), reports[s]) for s in steps))
    if steps == [0] and epoch is not None:
        return Reports(((epoch, reports[0]),))
    tokens = [tokens_of(s) for s in steps]
    if tokens[-1] > OVERSHOOT * planned:
        return Reports(
            problem=f"it reports at step {steps[-1]} and is planned for {planned:g} tokens; report tokens as the step, "
            "on the shared grid, as TrialRun does"
        )
    return Reports(tuple((t, reports[s]) for t, s in zip(tokens, steps, strict=True) if t > 0))
