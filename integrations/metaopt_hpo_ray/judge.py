"""Judge: which trial to launch next, and which to stop, from a book and a law. Pure: no Ray, no clock.

Every verdict is `scaling.policy`'s. What is added here is when a law is fitted, and the order of launches:
small sizes first until a law can be fitted, then by promise per cost, that is by the chance of beating the best
loss known at the same size and tokens, per training FLOP.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from metaopt_hpo.scaling import Law, Verdict
from metaopt_hpo.scaling.forecast import distribution
from metaopt_hpo.scaling.policy import PATIENCE, STOP_BELOW
from metaopt_hpo.trials.record import GRID_POINTS_PER_OCTAVE, TrialRecord
from metaopt_hpo_ray.entry import Entry, quarter_octave
from metaopt_hpo_ray.fits import Fit, ask, question_of
from metaopt_hpo_ray.state import TrialBook

logger = logging.getLogger(__name__)

GROWTH = 1.15
"""A law is fitted again when completed trials have grown by this factor, and by two at least."""

FIRST_FIT = 6
"""Completed trials before the first fit; fewer are refused."""

JUDGE_EVERY = 4
"""A running trial is judged at every fourth point of the token grid, twice an octave: between two of them a
forecast hardly moves."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with a trial, and why: launch, keep, stop, wait, or abstain where the law does not know."""

    action: Literal["launch", "keep", "stop", "wait", "abstain"]
    reason: str
    spared: bool = False
    """True where the law would stop the trial and it is let finish all the same."""
    verdict: Verdict | None = None
    """The law's, where it was asked."""


NO_LAW = Decision("abstain", "there is no law yet")
NOT_NOW = Decision("keep", "")
FINDS_ITS_OWN = Verdict("abstain", 0.5, "its strategy finds its own learning rate")


class Judge:
    """Decides from a book.

    Args:
        book: what is known of the trials; the judge only reads it.
        law: a law to begin with.
        evidence: trials of earlier work, which every fit includes.
        pilot_sizes: the smallest sizes that may always run; larger ones wait for a law (default 3, the fewest
            sizes that show one).
        stop_below: chance of winning below which a trial is stopped or not launched.
        grace: fraction of its tokens a trial may always run: warm-up looks worse than it is.
        background: fit in a thread of its own. False fits at once, which makes a simulation repeatable.
        seed: of the fit's bootstrap.
    """

    def __init__(
        self,
        book: TrialBook,
        *,
        law: Law | None = None,
        evidence: Sequence[TrialRecord] = (),
        pilot_sizes: int = 3,
        stop_below: float = STOP_BELOW,
        grace: float = 0.25,
        background: bool = True,
        seed: int = 0,
    ) -> None:
        self.book = book
        self.law = law
        self.refusal = ""
        """Why there is no law, where a fit was refused."""
        self.version = 0 if law is None else 1
        """How many laws there have been: the decision log names the one that was asked."""
        self._evidence = tuple(evidence)
        self._pilot_sizes = pilot_sizes
        self._stop_below = stop_below
        self._grace = grace
        self._background = background
        self._seed = seed
        self._fitted_at = 0
        self._fit: Fit | None = None
        self._queues: dict[int, list[tuple[float, int, str]]] = {}
        """Quarter octave of sizes → trials that wait: a continuous range of sizes makes few queues."""
        self._held: set[str] = set()
        self._live: dict[int, int] = {}
        """quarter octave of sizes → trials launched and not ended."""
        self._counted: dict[str, int] = {}
        """trial launched and not ended → its quarter octave when it was: a size may be learned later."""
        self._judged: dict[str, int] = {}
        self._taught: dict[str, TrialRecord] = {}
        """Completed trials as records, made once."""
        self._known = {quarter_octave(r.size) for r in evidence}
        self._order = 0
        if law is None and evidence:
            self._run_fit()

    # -- launching -----------------------------------------------------------------------------------------

    def hold(self, trial: str) -> None:
        """The trial waits for its turn."""
        if trial in self._held:
            return
        self._held.add(trial)
        self._known.add(quarter_octave(self.book.entries[trial].size))
        self._push(trial, self._promise(trial))

    def let_go(self, trial: str) -> None:
        """The trial waits no longer: it was launched, or has ended."""
        self._held.discard(trial)

    def is_held(self, trial: str) -> bool:
        """True while the trial waits."""
        return trial in self._held

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
            self._known.add(bucket)
            self._live[bucket] = self._live.get(bucket, 0) + 1

    def ended(self, trial: str) -> None:
        """The trial has ended, well or badly."""
        self.let_go(trial)
        self._judged.pop(trial, None)
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
        untried = self._fit is None and self.book.completed > self._fitted_at
        if self.law is None and untried and not self._pilots_live():
            self._run_fit()  # the last chance before large trials are launched blindly
        self.adopt()
        tops = sorted((top, b) for b in list(self._queues) if (top := self._top(b)) is not None)
        for (_, _, trial), bucket in tops:
            if skip(trial):
                continue
            decision = self._may_launch(trial, bucket)
            if decision.action != "wait":
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
            if self._pilots_live() or self._fit is not None:
                return Decision("wait", "small trials have not taught enough yet")
            why = self.refusal or "no trial has completed"
            return Decision("launch", f"no law is to be had ({why}): by cost alone")
        entry = self.book.entries[trial]
        v = self._verdict(entry, None)
        if v.action == "stop" and self._unchecked(entry):
            return Decision("launch", self._why_spared(entry, v), spared=True, verdict=v)
        if v.action == "stop":
            return Decision("stop", f"not launched: {v.reason}", verdict=v)
        if v.action == "abstain":
            if any(b < bucket for b in [*self._live, *self._queues]):
                return Decision("wait", f"smaller trials come first: {v.reason}")
            return Decision("launch", f"the law cannot judge it: {v.reason}", verdict=v)
        return Decision("launch", v.reason, verdict=v)

    def _pilots(self) -> list[int]:
        return sorted(self._known)[: self._pilot_sizes]

    def _pilots_live(self) -> bool:
        return any(b in self._live or self._top_exists(b) for b in self._pilots())

    def _top_exists(self, bucket: int) -> bool:
        return bucket in self._queues and self._top(bucket) is not None

    def _promise(self, trial: str) -> float:
        """Chance of beating the best known at its size and tokens; one half where nothing is known."""
        return 0.5 if self.law is None else self._verdict(self.book.entries[trial], None).probability

    def _push(self, trial: str, promise: float) -> None:
        entry = self.book.entries[trial]
        self._order += 1
        worth = max(promise, 1e-6) / (6.0 * entry.size * entry.tokens)
        heapq.heappush(self._queues.setdefault(quarter_octave(entry.size), []), (-worth, self._order, trial))

    # -- stopping ------------------------------------------------------------------------------------------

    def judge(self, trial: str) -> Decision:
        """Keep or stop a running trial after its last report; abstain where the law does not know."""
        entry = self.book.entries[trial]
        tokens, loss = entry.last
        if not math.isfinite(loss):
            return Decision("stop", f"diverged: the loss is {loss} after {tokens:g} tokens")
        law = self.law
        if entry.spared:
            return NOT_NOW
        if law is None or not entry.known:
            return NO_LAW
        if tokens < self._grace * entry.tokens:
            return NOT_NOW
        point = math.floor(GRID_POINTS_PER_OCTAVE * math.log2(max(tokens, 1.0))) // JUDGE_EVERY
        if self._judged.get(trial) == point:
            return NOT_NOW
        self._judged[trial] = point
        v = self._verdict(entry, (entry.last,))
        if v.action == "stop" and self._unchecked(entry):
            return Decision("keep", self._why_spared(entry, v), spared=True, verdict=v)
        if v.action == "stop":
            return Decision("stop", f"after {tokens:g} tokens: {v.reason}", verdict=v)
        return Decision("abstain" if v.action == "abstain" else "keep", v.reason, verdict=v)

    def _unchecked(self, entry: Entry) -> bool:
        """Whether the last trials of its place all were stopped, and none is being let finish."""
        return self.book.stops.get(entry.place, 0) >= PATIENCE and not self.book.sparing(entry.place)

    def _why_spared(self, entry: Entry, v: Verdict) -> str:
        return f"let finish after {self.book.stops[entry.place]} stops in a row, to check the law: {v.reason}"

    def _verdict(self, entry: Entry, curve: Sequence[tuple[float, float]] | None) -> Verdict:
        assert self.law is not None
        if entry.self_tuning:
            return FINDS_ITS_OWN
        best = self.book.best.get((entry.size, entry.tokens))
        return ask(self.law, question_of(entry), best, curve, self._stop_below)

    def log(self, trial: str, action: str, decision: Decision) -> None:
        """Enter a decision in the decision log, with what the law expected where it was asked."""
        v, entry = decision.verdict, self.book.entries[trial]
        if v is None or v is FINDS_ITS_OWN or self.law is None:
            self.book.decided(trial, action, decision.reason)
            return
        curve = (entry.last,) if entry.points else None
        size, tokens, lr, batch = question_of(entry)
        expected = math.exp(distribution(self.law, size, tokens, lr, batch, curve)[0])
        self.book.decided(
            trial, action, decision.reason, law=self.version, predicted=expected, probability=v.probability
        )

    # -- the law -------------------------------------------------------------------------------------------

    def learn(self) -> None:
        """Begin a fit where enough trials have completed since the last; costs microseconds where none is due."""
        done = self.book.completed
        due = max(FIRST_FIT, math.ceil(self._fitted_at * GROWTH), self._fitted_at + 2)
        if self._fit is None and done + len(self._evidence) >= FIRST_FIT and done >= due:
            self._run_fit()

    def _run_fit(self) -> None:
        self._fitted_at = self.book.completed
        entries = self.book.entries
        waiting = [
            (t, question_of(entries[t]), self.book.best.get((entries[t].size, entries[t].tokens)))
            for t in self._held
            if not entries[t].self_tuning
        ]
        self._fit = Fit(self._training_set(), waiting, self._seed)
        self._fit.start(background=self._background)
        self.adopt()

    def _training_set(self) -> list[TrialRecord]:
        own = []
        for key, e in self.book.entries.items():
            if e.state == "complete" and e.known and math.isfinite(e.last[1]):
                if key not in self._taught:
                    # planned tokens, as in `best`: the last step may fall short of them
                    self._taught[key] = replace(e.record(study="ray"), tokens=e.tokens)
                own.append(self._taught[key])
        return [*self._evidence, *own]

    def adopt(self) -> bool:
        """Take over a fit that has finished; True where that gave a new law, and the queues a new order."""
        done = self._fit
        if done is None or not done.finished:
            return False
        self._fit = None
        self.refusal = done.refusal
        if done.law is None:
            self.book.decided("", "refuse", self.refusal)
            logger.info("no law can be fitted yet: %s", self.refusal)
            return False
        self.law = done.law
        self.version += 1
        said = f"law {self.version}, fitted to {self.law.trials} trials"
        self.book.decided("", "fit", said, law=self.version)
        logger.info("%s; %d trials wait", said, len(self._held))
        self._queues = {}
        for trial in self.book.entries:
            if trial in self._held:
                self._push(trial, done.promise[trial] if trial in done.promise else self._promise(trial))
        return True

    # -- as data -------------------------------------------------------------------------------------------

    def to_state(self) -> dict[str, Any]:
        """Everything that does not follow from the book."""
        return {
            "law": None if self.law is None else self.law.to_json(),
            "version": self.version,
            "refusal": self.refusal,
            "fitted_at": self._fitted_at,
            "judged": dict(self._judged),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Become what `to_state` described; trials are held anew as Tune adds them."""
        self.law = None if state["law"] is None else Law.from_json(state["law"])
        self.refusal = str(state["refusal"])
        self.version = int(state.get("version", 1))
        self._fitted_at = int(state["fitted_at"])
        self._judged = {str(k): int(v) for k, v in state["judged"].items()}
        self._fit = None
        self._held, self._queues, self._counted, self._live, self._taught = set(), {}, {}, {}, {}
        self._known = {quarter_octave(r.size) for r in self._evidence}
        self._known |= {quarter_octave(e.size) for e in self.book.entries.values() if e.known}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._fit is not None and not self._fit.finished:
            self._run_fit()  # its thread was left behind
