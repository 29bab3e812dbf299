"""The order of launches: small sizes first until a law can be fitted, then by promise per cost.

Promise per cost is the chance of beating the best loss known at the same size and tokens, per training FLOP.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from metaopt_hpo.scaling.policy.logged_search import LoggedSearch
from metaopt_hpo.scaling.policy.refits import Fitted
from metaopt_hpo.scaling.policy.stopping import Decision
from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.logged_trial import quarter_octave
from metaopt_hpo.trials.record import TrialRecord


class LaunchOrder(LoggedSearch):
    """Which trial of a logbook to launch next, beside what `LoggedSearch` decides.

    Args:
        book, evidence, options: as `LoggedSearch`.
        pilot_sizes: the smallest sizes that may always run; larger ones wait for a law (default 3, the fewest
            sizes that show one).
    """

    def __init__(
        self, book: Logbook, *, evidence: Sequence[TrialRecord] = (), pilot_sizes: int = 3, **options: Any
    ) -> None:
        self._pilot_sizes = pilot_sizes
        self._fitted: Fitted | None = None
        """The law that the queues are ordered by."""
        self._queues: dict[int, list[tuple[float, int, str]]] = {}
        """Quarter octave of sizes → trials that wait: a continuous range of sizes makes few queues."""
        self._held: set[str] = set()
        self._live: dict[int, int] = {}
        """quarter octave of sizes → trials launched and not ended."""
        self._counted: dict[str, int] = {}
        """trial launched and not ended → its quarter octave when it was: a size may be learned later."""
        self._sizes = {quarter_octave(r.size) for r in evidence}
        """Quarter octaves of sizes that have been seen."""
        self._pushed = 0
        super().__init__(book, evidence=evidence, **options)

    def hold(self, trial: str) -> None:
        """The trial waits for its turn."""
        if trial in self._held:
            return
        self._held.add(trial)
        self._sizes.add(quarter_octave(self.book.entries[trial].size))
        self._push(trial, self._promise(trial))

    def let_go(self, trial: str) -> None:
        """The trial waits no longer: it was launched, or has ended."""
        self._held.discard(trial)

    @property
    def held(self) -> int:
        """How many trials wait."""
        return len(self._held)

    def started(self, trial: str) -> None:
        """The trial has been given resources."""
        entry = self.book.entries[trial]
        if trial not in self._counted and entry.described:
            bucket = quarter_octave(entry.size)
            self._counted[trial] = bucket
            self._sizes.add(bucket)
            self._live[bucket] = self._live.get(bucket, 0) + 1

    def ended(self, trial: str) -> None:
        """The trial has ended, well or badly."""
        self.let_go(trial)
        self._enter(trial)
        if trial in self._counted:
            bucket = self._counted.pop(trial)
            self._live[bucket] = max(0, self._live.get(bucket, 0) - 1)
            if not self._live[bucket]:
                del self._live[bucket]

    def next(self, skip: Callable[[str], bool] = lambda trial: False) -> tuple[str, Decision] | None:
        """The trial to launch, or not to launch, now; None where all that wait must wait on.

        Args:
            skip: True for a trial that could not be placed now; those of its size are passed over.
        """
        if not self._held:
            return None
        self._reorder()
        tops = sorted((top, b) for b in list(self._queues) if (top := self._top(b)) is not None)
        for (_, _, trial), bucket in tops:
            if skip(trial):
                continue
            decision = self._may_launch(trial, bucket)
            if decision.action != "abstain":  # it waits
                return trial, decision
        return None

    def _top(self, bucket: int) -> tuple[float, int, str] | None:
        queue = self._queues[bucket]
        while queue and queue[0][2] not in self._held:
            heapq.heappop(queue)
        if not queue:
            del self._queues[bucket]
            return None
        return queue[0]

    def _may_launch(self, trial: str, bucket: int) -> Decision:
        if self.law is None:
            if bucket in self._pilots():
                return Decision("launch", "small trials teach the law and run first")
            if self._pilots_live():
                return Decision("abstain", "small trials have not taught enough yet")
            why = self.refusal or "no trial has completed"
            return Decision("launch", f"no law is to be had ({why}): by cost alone")
        decision = self._decide(self.book.entries[trial])
        if decision.action == "stop":
            return replace(decision, reason=f"not launched: {decision.reason}")
        if decision.action == "abstain":
            if any(b < bucket for b in [*self._live, *self._queues]):
                return replace(decision, reason=f"smaller trials come first: {decision.reason}")
            return replace(decision, action="launch", reason=f"the law cannot judge it: {decision.reason}")
        return decision

    def _pilots(self) -> list[int]:
        return sorted(self._sizes)[: self._pilot_sizes]

    def _pilots_live(self) -> bool:
        return any(b in self._live or self._top_exists(b) for b in self._pilots())

    def _top_exists(self, bucket: int) -> bool:
        return bucket in self._queues and self._top(bucket) is not None

    def _promise(self, trial: str) -> float:
        """Chance of beating the best known at its size and tokens; one half where nothing is known."""
        return self._decide(self.book.entries[trial]).probability

    def _push(self, trial: str, promise: float) -> None:
        entry = self.book.entries[trial]
        self._pushed += 1
        worth = max(promise, 1e-6) / (6.0 * entry.size * entry.tokens)
        heapq.heappush(self._queues.setdefault(quarter_octave(entry.size), []), (-worth, self._pushed, trial))

    def _reorder(self) -> None:
        """Order what waits by the law in force, where that has changed."""
        if self.fitted is not self._fitted:
            self._note_law(len(self._held))
            self._queues = {}
            for trial in self.book.entries:
                if trial in self._held:
                    self._push(trial, self._promise(trial))
            self._fitted = self.fitted

    def load_state(self, state: dict[str, Any]) -> None:
        """Become what `to_state` described; trials are held anew as the framework adds them."""
        self._held, self._queues, self._counted, self._live = set(), {}, {}, {}
        self._fitted = None
        super().load_state(state)
        self._sizes |= {quarter_octave(e.size) for e in self.book.entries.values() if e.described}
