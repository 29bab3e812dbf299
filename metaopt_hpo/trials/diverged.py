"""When a loss says that a run has diverged, and the finite loss that a search is told in its place."""

from __future__ import annotations

import math
from collections.abc import Iterable

EXPLODED = 2.0
"""A held-out loss above this multiple of the untrained model's, or of the first report, has diverged."""


def exploded(loss: float, initial: float) -> bool:
    """Whether a held-out loss says that the run has diverged: not finite, or far above the untrained model's."""
    return not math.isfinite(loss) or loss > EXPLODED * initial > 0


def stand_in_loss(initial: float, seen: Iterable[float], others: Iterable[float] = ()) -> float | None:
    """A finite loss for a run that diverged, so that a search goes on and learns from it.

    Twice the untrained model's, or the worst that the run saw where that says nothing (a negated metric); the worst
    of other runs where the run saw nothing finite. None where nothing is known that it could be worse than.
    """
    known = [x for x in (initial, *seen) if math.isfinite(x)] or [x for x in others if math.isfinite(x)]
    if not known:
        return None
    worst = max(known)
    doubled = EXPLODED * initial if math.isfinite(initial) and initial > 0 else worst
    return max(worst, doubled) if math.isfinite(doubled) else worst
