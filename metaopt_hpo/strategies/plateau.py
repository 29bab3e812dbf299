"""Whether a run has begun to learn: before that nothing it shows says what step size suits it.

Many small networks rest on a plateau at first, where the meta-gradient is noise. A step size that is committed to
there is far too small for what follows, so the search goes on until the loss has begun to fall, and the step size has
done climbing after it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metaopt_hpo.optim import host
from metaopt_hpo.strategies.processes import mean_over_processes

FALL = 0.2
"""Fraction of the first loss that must be gone. Chosen on small jobs outside the study (products of inputs, targets
that are mostly noise): at 0.1 one of them still committed on its plateau. No study has measured it yet."""

CLIMBING = 2.4
"""Factor by which a step size that still climbs lies above its mean over the time that is averaged. Where a small
network has just left its plateau it is 3 to 4, and a run that committed there would find a quarter of the best rate; on
jobs outside the study it is 1.93 at the most, on a GRU (`python -m studies.one_run.climbs`). This lies halfway."""

LATEST = 0.5
"""Fraction of the run at which the step size is committed to all the same."""

DELAY = 0.05
"""Fraction of the run between two looks."""


class Plateau:
    """Mean loss of the first steps, and of those before the step size is to be committed to.

    Args:
        horizon: steps of the run.
        commit: first step at which the step size may be committed to.
    """

    def __init__(self, horizon: int, commit: int) -> None:
        self._first = max(3, commit // 20)
        self._part = max(3, commit // 5)
        self._delay = max(1, round(DELAY * horizon))
        self._latest = round(LATEST * horizon)
        self._sums: list[Tensor | None] = [None, None]
        self._counts = [0, 0]

    def see(self, step: int, loss: Tensor | None, commit: int) -> None:
        """Take in a training loss, with the step at which a decision is due."""
        if loss is None:
            return
        for i, wanted in enumerate((step < self._first, commit - self._part <= step < commit)):
            if wanted:
                value, old = loss.detach().double().reshape(()), self._sums[i]
                self._sums[i] = value if old is None else old.to(value.device) + value
                self._counts[i] += 1

    def delay(self, commit: int, last: int, risen: Tensor | None = None) -> int:
        """Steps by which the commitment at `commit` is put off: 0 where the run learns at a step size that has settled.

        Args:
            commit: the step now.
            last: where it must be over at any rate.
            risen: the step size now over its mean, a 0-d tensor; None where that says nothing.
        """
        later = min(commit + self._delay, self._latest, last)
        first, now = self._sums
        self._sums[1], counts = None, list(self._counts)
        self._counts[1] = 0
        if later <= commit:
            return 0
        known = first is not None and now is not None and min(counts) >= 3
        asked = [x.detach().double().reshape(()) for x in (risen, first, now) if x is not None]
        if not asked or (risen is None and not known):
            return 0
        told = host.read(
            list(mean_over_processes(torch.stack([x.to(asked[-1].device) for x in asked])).unbind())
        )
        if risen is not None and told[0] > CLIMBING:
            return later - commit
        if not known:
            return 0
        start, end = (total / n for total, n in zip(told[-2:], counts, strict=True))
        return later - commit if 0 < (1 - FALL) * start <= end <= 2 * start else 0

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far."""
        return {"sums": list(self._sums), "counts": list(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        self._sums, self._counts = list(state["sums"]), list(state["counts"])
