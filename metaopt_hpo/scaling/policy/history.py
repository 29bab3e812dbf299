"""What decisions know of a search: the trials that have ended, in the order they did. Plain data, any framework's.

An integration converts each trial once, when it ends, and hands it over; everything that a decision asks (the best
loss at a size, how many were stopped in a row, which trials a law is fitted to) is answered here.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from metaopt_hpo.scaling.policy.conditioned import Conditioned, Finished, conditioned
from metaopt_hpo.scaling.sameness import SAME, at_least, same
from metaopt_hpo.trials.record import TrialRecord

if TYPE_CHECKING:
    from metaopt_hpo.scaling.law import Law

Cell = tuple[float, float]
"""Size and planned tokens."""

Kept = tuple[float, float, Finished, str]
"""Size, planned tokens, the run and its strategy; lr is NaN where the run found its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A trial that runs, or is about to, as a decision sees it.

    Attributes:
        size, batch, lr: the configuration.
        tokens: planned tokens.
        strategy: name of what sets lr during the run, where it has one.
        self_tuning: True where the run finds its lr itself.
        curve: (tokens, loss) of what it has reported, a loss that is minimised; empty before it starts.
        spared: True where it was let finish before, whatever the law says.
    """

    size: float
    tokens: float
    batch: float
    lr: float
    strategy: str = ""
    self_tuning: bool = False
    curve: tuple[tuple[float, float], ...] = ()
    spared: bool = False


class History:
    """The trials of one search that have ended.

    Attributes:
        finished: completed trials with (when they ended, their number), by when they ended.
        late: how many of them were heard of only after one that ended later, as happens with several workers: what
            was made of the first so many trials is then to be made again.
    """

    def __init__(self) -> None:
        self.finished: list[tuple[Any, TrialRecord]] = []
        self.late = 0
        self._stopped: dict[float, list[Any]] = {}
        """Size → when trials of it were stopped, in order."""
        self._completed: dict[float, Any] = {}
        """Size → when a trial of it last completed."""
        self._by_size: list[Kept] = []
        """Completed trials, by size."""
        self._spared: dict[Any, float] = {}
        """Trials that are being let finish → their size."""
        self._best: dict[tuple[float, float, float], float | None] = {}
        """Answers of `best` since the last trial was added."""
        self._conditioned: dict[tuple[float, float, float, str], tuple[Law, Conditioned | None]] = {}
        """Answers of `conditioned` since then, and the law of each."""

    @classmethod
    def of(cls, records: Iterable[TrialRecord]) -> History:
        """Trials in the order they ended."""
        history = cls()
        for i, record in enumerate(records):
            history.add((i,), record)
        return history

    def add(self, when: Any, record: TrialRecord) -> None:
        """A trial has ended. Only completed ones teach a law; only stopped ones count as stops.

        Args:
            when: a key that orders trials by when they ended; no two are equal.
            record: the trial; what it was planned for is what it is filed under, though its last step may have
                overshot or fallen short.
        """
        if record.state == "pruned":
            insort(self._stopped.setdefault(record.size, []), when)
        if record.state != "complete":
            return
        planned = record.planned_tokens
        record = replace(record, tokens=planned, target_tokens=planned)
        self._completed[record.size] = max(when, self._completed.get(record.size, when))
        self._best.clear()
        self._conditioned.clear()
        self.late += bool(self.finished) and when < self.finished[-1][0]
        insort(self.finished, (when, record), key=lambda item: item[0])
        if 0 < record.loss < math.inf:
            lr = math.nan if record.self_tuning else record.lr
            row = record.size, planned, Finished(lr, record.batch, record.loss, record.curve), record.strategy
            insort(self._by_size, row, key=lambda r: r[:2])

    def spare(self, key: Any, size: float) -> None:
        """A trial is let finish, whatever the law says."""
        self._spared[key] = size

    def sparing_only(self, spared: Mapping[Any, float]) -> None:
        """Exactly these trials (with their sizes) are being let finish now."""
        self._spared = dict(spared)

    # -- what decisions ask ----------------------------------------------------------------------------------

    def losses(self, size: float, tokens: float, batch: float = 0.0) -> list[float]:
        """Final losses at one size and number of tokens; `batch`, tokens of a step, is how far tokens may be off."""
        return [run.loss for *_, run, _ in self._at(size, tokens, batch)]

    def _at(self, size: float, tokens: float, batch: float) -> list[Kept]:
        low = bisect_left(self._by_size, size / (1.0 + SAME), key=lambda row: row[0])
        high = bisect_right(self._by_size, size * (1.0 + SAME), key=lambda row: row[0])
        return [
            row for row in self._by_size[low:high] if same(row[0], size) and same(row[1], tokens, step=batch)
        ]

    def conditioned(self, law: Law, run: Run) -> Conditioned | None:
        """A law conditioned on what has finished at a run's size and tokens under its strategy; None for too few."""
        key = (run.size, run.tokens, run.batch, run.strategy)
        known = self._conditioned.get(key)
        if known is None or known[0] is not law:
            there = self._at(run.size, run.tokens, run.batch)
            finished = [
                done
                for *_, done, strategy in there
                if strategy == run.strategy or not (strategy and run.strategy)
            ]
            known = self._conditioned[key] = law, conditioned(law, run.size, run.tokens, finished)
        return known[1]

    def best(self, size: float, tokens: float, batch: float = 0.0) -> float | None:
        """Lowest of these, None where nothing has finished there."""
        key = (size, tokens, batch)
        if key not in self._best:
            self._best[key] = min(self.losses(size, tokens, batch), default=None)
        return self._best[key]

    def stops_in_a_row(self, size: float) -> int:
        """Trials of this size and above that were stopped since one of them last finished."""
        ends = [when for other, when in self._completed.items() if at_least(other, size)]
        stopped = [times for other, times in self._stopped.items() if at_least(other, size)]
        if not ends:
            return sum(map(len, stopped))
        return sum(len(times) - bisect_right(times, max(ends)) for times in stopped)

    def sparing(self, size: float) -> bool:
        """Whether a trial of this size or above is being let finish now."""
        return any(at_least(other, size) for other in self._spared.values())
