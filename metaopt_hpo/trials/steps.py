"""A run's tokens as a framework's integer step, and back.

A step *is* a token count, so that trials of all sizes meet at equal tokens. Databases that keep steps in 32 bits
(PostgreSQL and MySQL under Optuna) hold no more than 2,147,483,647 of them; a step above `EXACT` therefore counts
thousandths of an octave beyond it. Steps still grow with tokens, equal tokens still give equal steps, and what was
written before (token counts below the limit) reads as it did. The exact count is kept with the trial's record.
"""

from __future__ import annotations

import math

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
