"""What is known of a search and of earlier ones: trials that have ended, the law they bear, and runs for proposals.

For frameworks that keep their own trials; an integration converts each once, when it ends.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from metaopt_hpo.scaling.base.population import Base
from metaopt_hpo.scaling.law import Law
from metaopt_hpo.scaling.policy.history import Cell, History
from metaopt_hpo.scaling.policy.points import FittedBowl, Runs, fitted_bowl
from metaopt_hpo.scaling.policy.refits import Fitted, Refits, step
from metaopt_hpo.trials.record import TrialRecord

Row = tuple[float, float, float, float, float]
"""Size, planned tokens, batch, lr, final loss or NaN."""

Placed = tuple[Row, str]
"""A run without a loss, and its strategy."""


@dataclass
class Past:
    """What has been read of one search."""

    history: History = field(default_factory=History)
    unfinished: dict[Hashable, Placed] = field(default_factory=dict)
    """Pruned trials, and those that ended by themselves before their plan, whose lr was set from outside."""
    failed: dict[Hashable, Placed] = field(default_factory=dict)
    """Failed trials whose lr was set from outside."""
    early: dict[Hashable, float] = field(default_factory=dict)
    """Completed trials that are taken for stopped: at what share of their plan their reports end."""
    used: list[Cell] = field(default_factory=list)
    """Size, and tokens seen, of each ended trial."""
    positive: bool = False
    """Some finished trial has a loss above 0, which a law can be of."""
    sources: list[Past] = field(default_factory=list)
    """Earlier searches, whose trials count as well."""
    refits: Refits | None = None
    fitted: Fitted | None = None
    """The law in force when it was last asked for."""
    _bowls: dict[str, tuple[tuple[int, int, int], FittedBowl | None]] = field(default_factory=dict)
    """By strategy, the bowl behind proposals, the numbers of trials it was fitted to, and how many came late."""

    @property
    def law(self) -> Law | None:
        """The law in force."""
        return None if self.fitted is None else self.fitted.law

    @property
    def refusal(self) -> str:
        """Why there is no law."""
        return "" if self.fitted is None else self.fitted.refusal

    @property
    def finished(self) -> int:
        """Number of completed trials with a size."""
        return len(self.history.finished)

    @property
    def all(self) -> tuple[Past, ...]:
        """The search, and the earlier ones."""
        return self, *self.sources

    def add(self, when: Any, record: TrialRecord) -> None:
        """A trial has ended; see `History.add`."""
        self.history.add(when, record)
        whole = record.state == "complete"
        self.used.append((record.size, record.planned_tokens if whole else record.tokens))
        self.positive |= whole and record.loss > 0

    def refit(self, refits: Refits) -> Fitted:
        """The law in force now, by the refits that were given first."""
        self.refits = self.refits or refits
        self.fitted = self.refits.in_force(self.history, [past.history for past in self.sources])
        return self.fitted

    def records(self, count: int | None = None) -> list[TrialRecord]:
        """The first `count` finished trials of the search (all by default), and all of earlier ones."""
        chosen = [r for _, r in self.history.finished[:count]]
        return chosen + [r for past in self.sources for _, r in past.history.finished]

    def runs(
        self, strategy: str, running: Iterable[Placed] = (), base: Base | None = None
    ) -> tuple[Runs, FittedBowl | None]:
        """All runs, for proposals, and the bowl they show.

        Trials that ended without a loss, or still run, are runs without one; a failed trial that was made again is one
        run with its repetition. Where the trial that is proposed has a
        strategy, runs of others are left out, for the best lr depends on the schedule; so are runs that find their own
        lr. The bowl is that of the first K finished trials, K as for laws; it takes milliseconds.

        Args:
            strategy: of the trial that is proposed, or "".
            running: runs under way.
            base: what the bowl borrows strength from.
        """

        def counts(other: str) -> bool:
            return not strategy or other in ("", strategy)

        def finished(count: int | None = None) -> list[Row]:
            return [
                (r.size, r.planned_tokens, r.batch, r.lr, r.loss)
                for r in self.records(count)
                if counts(r.strategy) and not r.self_tuning
            ]

        late = sum(past.history.late for past in self.all)
        key = (step(self.finished), sum(past.finished for past in self.sources), late)
        if strategy not in self._bowls or self._bowls[strategy][0] != key:
            self._bowls[strategy] = (key, fitted_bowl(Runs.of(finished(key[0])), base=base))
        rows = finished()
        rows += [row for row, other in [*self.unfinished.values(), *running] if counts(other)]
        again = {row[:4] for row in rows}
        failed = dict.fromkeys(row for row, other in self.failed.values() if counts(other))
        rows += [row for row in failed if row[:4] not in again]
        return Runs.of(rows), self._bowls[strategy][1]

    def spent(self, running: Iterable[Placed] = ()) -> tuple[float, float]:
        """(FLOPs, tokens) of the search's own trials; one that runs counts with all it will see."""
        used = [*self.used, *(row[:2] for row, _ in running)]
        return 6.0 * math.fsum(n * d for n, d in used), math.fsum(d for _, d in used)
