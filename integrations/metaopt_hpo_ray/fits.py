"""A fit of the law in a thread of its own, and what the new law promises of the trials that wait."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from metaopt_hpo.scaling import Law, LawRefused, Verdict, fit, verdict
from metaopt_hpo.scaling.policy import STOP_BELOW
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_ray.entry import Entry

FIT_DRAWS = 60
"""Bootstrap draws of a fit during a search, as the policy's own; enough for a verdict, a few tenths of a second."""

DEADLINE = 300.0
"""Seconds after which a fit is given up and trials are launched without it: one takes tenths of a second, and one that
hangs must not hold a cluster."""

Question = tuple[float, float, float, float]
"""size, tokens, lr, batch."""


class Fit:
    """One fit and the promise of what waits under the new law, in a thread of its own or at once."""

    def __init__(
        self,
        records: list[TrialRecord],
        waiting: list[tuple[str, Question, float | None]],
        seed: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records = records
        self._waiting = waiting
        self._seed = seed
        self.law: Law | None = None
        self.promise: dict[str, float] = {}
        self.refusal = ""
        self._ended = False
        self._clock = clock
        self._due = math.inf

    @property
    def finished(self) -> bool:
        """True once it has ended, or its time is up."""
        if not self._ended and self._clock() > self._due:
            self._ended = True
            self.law, self.refusal = None, f"the fit was given up after {DEADLINE:g} s"
        return self._ended

    def __getstate__(self) -> dict[str, Any]:
        # the thread may be writing
        return {**self.__dict__, "promise": dict(self.promise) if self._ended else {}}

    def start(self, *, background: bool) -> None:
        self._due = self._clock() + DEADLINE
        if background:
            threading.Thread(target=self._run, name="metaopt-fit", daemon=True).start()
        else:
            self._run()

    def _run(self) -> None:
        law, promise, refusal = None, {}, ""
        try:
            found = fit(TrialTable.from_records(self._records), draws=FIT_DRAWS, seed=self._seed)
            for trial, question, best in self._waiting:
                promise[trial] = ask(found, question, best, None, STOP_BELOW).probability
            law = found
        except LawRefused as error:
            refusal = error.reason
        except Exception as error:  # a fit that fails must not end a cluster's search
            refusal = f"the fit failed: {type(error).__name__}: {error}"
        if not self._ended:  # else its time was up
            self.law, self.promise, self.refusal = law, promise, refusal
            self._ended = True


def question_of(entry: Entry) -> Question:
    return entry.size, entry.tokens, entry.lr, entry.batch


def ask(
    law: Law,
    question: Question,
    best: float | None,
    curve: Sequence[tuple[float, float]] | None,
    stop_below: float,
) -> Verdict:
    size, tokens, lr, batch = question
    return verdict(
        law, size=size, tokens=tokens, lr=lr, batch=batch, incumbent=best, curve=curve, stop_below=stop_below
    )
