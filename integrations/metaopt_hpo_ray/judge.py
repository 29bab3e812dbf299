"""Judge: which trial to launch next, and which to stop, from a book. No Ray, no clock.

Whether a trial may still win, and when a law is fitted, is `scaling.policy`'s to say. What is added here is the order
of launches: small sizes first until a law can be fitted, then by promise per cost, that is by the chance of beating the
best loss known at the same size and tokens, per training FLOP.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from metaopt_hpo.scaling import Law
from metaopt_hpo.scaling.base.sources import BaseLike
from metaopt_hpo.scaling.forecast import distribution
from metaopt_hpo.scaling.policy import STOP_BELOW, Decision, Fitted, History, Refits, Rule, Run, decide
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo_ray.entry import Entry, quarter_octave
from metaopt_hpo_ray.trial_book import TrialBook

logger = logging.getLogger(__name__)

TOO_FEW = "completed trials a law needs first"

UNREAD = Decision("abstain", "its size, tokens, batch or lr is not known")


class Judge:
    """Decides from a book.

    Args:
        book: what is known of the trials; the judge only reads it.
        law: a law to begin with.
        evidence: trials of earlier work, which every fit includes.
        pilot_sizes: the smallest sizes that may always run; larger ones wait for a law (default 3, the fewest
            sizes that show one).
        stop_below: chance of winning below which a trial is stopped or not launched.
        grace: fraction of its tokens a trial may always run; by default from when finished runs' curves say how
            runs fall.
        background: fit ahead in a thread. False fits where a law is asked for.
        seed: of the fit's bootstrap.
        base, prior: what every law borrows strength from.
    """

    def __init__(
        self,
        book: TrialBook,
        *,
        law: Law | None = None,
        evidence: Sequence[TrialRecord] = (),
        pilot_sizes: int = 3,
        stop_below: float = STOP_BELOW,
        grace: float = 0.0,
        background: bool = True,
        seed: int = 0,
        base: BaseLike | Sequence[BaseLike] | None = None,
        prior: Law | None = None,
    ) -> None:
        self.book = book
        self._evidence = [History.of(evidence)] if evidence else []
        self._refits = Refits(seed=seed, background=background, first=law, base=base, prior=prior)
        self._rule = Rule(stop_below=stop_below, grace=grace)
        self.version = 0
        """How many laws there have been: the decision log names the one that was asked."""
        self._pilot_sizes = pilot_sizes
        self._history = History()
        self._order: list[str] = []
        """Trials that have ended, in the order they did; a retry's last end counts."""
        self._ended: set[str] = set()
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
        self.learn()

    @property
    def law(self) -> Law | None:
        """The law in force."""
        found = self.fitted.law
        return found if found is None or isinstance(found, Law) else Law.of(found)

    @property
    def refusal(self) -> str:
        """Why there is no law."""
        return self.fitted.refusal

    @property
    def fitted(self) -> Fitted:
        """The law in force, and what it is of."""
        return self._refits.in_force(self._history, self._evidence)

    # -- launching -----------------------------------------------------------------------------------------

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
        if trial not in self._counted and entry.known:
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

    # -- stopping ------------------------------------------------------------------------------------------

    def judge(self, trial: str) -> Decision:
        """Keep or stop a running trial after its last report; abstain where the law does not know."""
        entry = self.book.entries[trial]
        tokens, loss = entry.last
        if not math.isfinite(loss):
            return Decision("stop", f"diverged: the loss is {loss} after {tokens:g} tokens")
        if not entry.known:
            return UNREAD
        decision = self._decide(entry, (entry.last,))
        if decision.action == "stop":
            return replace(decision, reason=f"after {tokens:g} tokens: {decision.reason}")
        return decision

    def _decide(self, entry: Entry, curve: tuple[tuple[float, float], ...] = ()) -> Decision:
        run = Run(
            size=entry.size,
            tokens=entry.tokens,
            batch=entry.batch,
            lr=entry.lr,
            strategy=entry.strategy,
            self_tuning=entry.self_tuning,
            curve=curve,
            spared=entry.spared,
        )
        self._history.sparing_only(self.book.sparing_now())
        return decide(run, self._history, self.fitted, self._rule, others=self._evidence)

    def log(self, trial: str, action: str, decision: Decision) -> None:
        """Enter a decision in the decision log, with what the law expected where it was asked."""
        entry, law = self.book.entries[trial], self.law
        if law is None or not decision.asked:
            self.book.decided(trial, action, decision.reason)
            return
        curve = (entry.last,) if entry.points else None
        expected = math.exp(distribution(law, entry.size, entry.tokens, entry.lr, entry.batch, curve)[0])
        self.book.decided(
            trial,
            action,
            decision.reason,
            law=self.version,
            predicted=expected,
            probability=decision.probability,
        )

    # -- the law -------------------------------------------------------------------------------------------

    def learn(self) -> None:
        """Begin a fit ahead, where enough trials have ended since the last; nearly always there is nothing to do."""
        if self._refits.background:
            self._refits.ahead(self._history, self._evidence)

    def _enter(self, trial: str) -> None:
        """A trial has ended: what it teaches."""
        entry = self.book.entries[trial]
        if not entry.known or (entry.state == "complete" and not math.isfinite(entry.last[1])):
            return
        if trial in self._ended or entry.state not in ("complete", "pruned"):
            return  # told twice, or it teaches nothing
        self._ended.add(trial)
        self._order.append(trial)
        # planned tokens: the last step may fall short of them
        self._history.add((len(self._order),), entry.record(study="ray"))

    def _reorder(self) -> None:
        """Order what waits by the law in force, where that has changed."""
        if self.fitted is not self._fitted:
            self._note_law()
            self._queues = {}
            for trial in self.book.entries:
                if trial in self._held:
                    self._push(trial, self._promise(trial))
            self._fitted = self.fitted

    def _note_law(self) -> None:
        """Enter in the decision log that there is another law, or why there is none."""
        if self.law is None:
            if self.refusal and not self.refusal.endswith(TOO_FEW):  # too few trials are no news
                self.book.decided("", "refuse", self.refusal)
                logger.info("no law can be fitted yet: %s", self.refusal)
            return
        self.version += 1
        said = f"law {self.version}, fitted to {self.law.trials} trials"
        self.book.decided("", "fit", said, law=self.version)
        logger.info("%s; %d trials wait", said, len(self._held))

    # -- as data -------------------------------------------------------------------------------------------

    def to_state(self) -> dict[str, Any]:
        """Everything that does not follow from the book."""
        first = self._refits.first.law
        return {
            "law": None if first is None else first.to_json(),
            "version": self.version,
            "order": list(self._order),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Become what `to_state` described; trials are held anew as Tune adds them."""
        if state.get("law") is not None and self._refits.first.law is None:
            self._refits.begin_with(Law.from_json(state["law"]))
        self.version = int(state.get("version", 1))
        self._held, self._queues, self._counted, self._live = set(), {}, {}, {}
        self._fitted = None
        self._history, self._order, self._ended = History(), [], set()
        entries = self.book.entries
        ended = [str(t) for t in state.get("order", ())]
        # a state of before the order was kept: as they were added
        for trial in dict.fromkeys([*ended, *entries]):
            if trial in entries and entries[trial].closed:
                self._enter(trial)
        self._sizes |= {quarter_octave(e.size) for e in entries.values() if e.known}
