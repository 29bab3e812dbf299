"""Decisions about the trials of a logbook: what has ended is fitted, what runs is judged, and both are logged.

For frameworks whose trials are kept in a `trials.logbook`. Whether a trial may still win, and when a law is fitted, is
`stopping`'s and `refits`' to say.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from metaopt_hpo.scaling.base.sources import BaseLike
from metaopt_hpo.scaling.forecast import distribution
from metaopt_hpo.scaling.law import Law
from metaopt_hpo.scaling.policy.history import History, Run
from metaopt_hpo.scaling.policy.points import Runs
from metaopt_hpo.scaling.policy.refits import Fitted, Refits
from metaopt_hpo.scaling.policy.stopping import STOP_BELOW, Decision, Rule, decide
from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.logged_trial import LoggedTrial
from metaopt_hpo.trials.record import TrialRecord, TrialState

logger = logging.getLogger(__name__)

TOO_FEW = "completed trials a law needs first"

UNREAD = Decision("abstain", "its size, tokens, batch or lr is not known")


class LoggedSearch:
    """The law of a logbook's trials, and its decisions about those that run.

    Args:
        book: what is known of the trials; only the decision log is written.
        law: a law to begin with.
        evidence: trials of earlier work, which every fit includes.
        stop_below: chance of winning below which a trial is stopped or not launched.
        grace: fraction of its tokens a trial may always run; by default from when finished runs' curves say how
            runs fall.
        background: fit ahead in a thread. False fits where a law is asked for.
        seed: of the fit's bootstrap.
        base, prior: what every law borrows strength from.
    """

    def __init__(
        self,
        book: Logbook,
        *,
        law: Law | None = None,
        evidence: Sequence[TrialRecord] = (),
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
        self._history = History()
        self._order: list[str] = []
        """Trials that have ended, in the order they did; a retry's last end counts."""
        self._ended: set[str] = set()
        self.learn()

    @property
    def law(self) -> Law | None:
        """The law in force."""
        return self.fitted.law

    @property
    def refusal(self) -> str:
        """Why there is no law."""
        return self.fitted.refusal

    @property
    def fitted(self) -> Fitted:
        """The law in force, and what it is of."""
        return self._refits.in_force(self._history, self._evidence)

    # -- deciding ------------------------------------------------------------------------------------------

    def decision(self, trial: str) -> Decision:
        """Keep or stop a running trial after its last report; abstain where the law does not know."""
        entry = self.book.entries[trial]
        tokens, loss = entry.last
        if not math.isfinite(loss):
            return Decision("stop", f"diverged: the loss is {loss} after {tokens:g} tokens")
        if not entry.described:
            return UNREAD
        decision = self._decide(entry, (entry.last,))
        if decision.action == "stop":
            return replace(decision, reason=f"after {tokens:g} tokens: {decision.reason}")
        return decision

    def _decide(self, entry: LoggedTrial, curve: tuple[tuple[float, float], ...] = ()) -> Decision:
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

    def stop(self, trial: str, decision: Decision, state: TrialState = "pruned") -> None:
        """Close a trial by a decision."""
        self.book.close(trial, state, decision.reason)
        self.log(trial, "stop", decision)
        logger.info("trial %s: stop (%s): %s", trial, state, decision.reason)

    def go_on(self, trial: str, action: str, decision: Decision) -> None:
        """Launch or keep a trial by a decision; one that is let finish to check the law is marked."""
        if decision.spared:
            self.book.spare(trial)
        self.log(trial, action, decision)
        level = logging.INFO if decision.spared else logging.DEBUG
        logger.log(level, "trial %s: %s: %s", trial, action, decision.reason)

    def learn(self) -> None:
        """Begin a fit ahead, where enough trials have ended since the last; nearly always there is nothing to do."""
        if self._refits.background:
            self._refits.ahead(self._history, self._evidence)

    def _enter(self, trial: str) -> None:
        """A trial has ended: what it teaches."""
        entry = self.book.entries[trial]
        if not entry.described or (entry.state == "complete" and not math.isfinite(entry.last[1])):
            return
        if trial in self._ended or entry.state not in ("complete", "pruned"):
            return  # told twice, or it teaches nothing
        self._ended.add(trial)
        self._order.append(trial)
        # planned tokens: the last step may fall short of them
        self._history.add((len(self._order),), entry.record(study="ray"))

    def _note_law(self, waiting: int) -> None:
        """Enter in the decision log that there is another law, or why there is none."""
        if self.law is None:
            if self.refusal and not self.refusal.endswith(TOO_FEW):  # too few trials are no news
                self.book.decided("", "refuse", self.refusal)
                logger.info("no law can be fitted yet: %s", self.refusal)
            return
        self.version += 1
        said = f"law {self.version}, fitted to {self.law.trials} trials"
        self.book.decided("", "fit", said, law=self.version)
        logger.info("%s; %d trials wait", said, waiting)

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
        """Become what `to_state` described."""
        if state.get("law") is not None and self._refits.first.law is None:
            self._refits.begin_with(Law.from_json(state["law"]))
        self.version = int(state.get("version", 1))
        self._history, self._order, self._ended = History(), [], set()
        ended = [str(t) for t in state.get("order", ())]
        # a state of before the order was kept: as they were added
        for trial in dict.fromkeys([*ended, *self.book.entries]):
            if trial in self.book.entries and self.book.entries[trial].closed:
                self._enter(trial)


def all_runs(book: Logbook, evidence: Sequence[TrialRecord] = ()) -> Runs:
    """Runs for proposals: a book's and those of earlier work.

    One that is under way, was stopped, diverged or failed counts and teaches nothing. Runs whose strategy finds its
    own lr are left out.
    """
    records = [*evidence, *(e.record() for e in book.entries.values() if e.described)]
    return Runs.of(
        (r.size, r.planned_tokens, r.batch, r.lr, r.loss if r.state == "complete" else math.nan)
        for r in records
        if not r.self_tuning
    )


def spent(book: Logbook) -> tuple[float, float]:
    """(FLOPs, tokens) of a book's trials; one under way counts with all it will see."""
    ran = [e for e in book.entries.values() if e.described]
    used = [(e.size, e.last[0] if e.closed and e.state != "complete" else e.tokens) for e in ran]
    return 6.0 * math.fsum(n * d for n, d in used), math.fsum(d for _, d in used)
