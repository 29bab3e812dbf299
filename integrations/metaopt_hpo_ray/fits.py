"""A fit of the law in a thread of its own, and what the new law promises of the trials that wait."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from metaopt_hpo.scaling import Law, LawRefused, Verdict, fit, verdict
from metaopt_hpo.scaling.policy import STOP_BELOW
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_ray.entry import Entry

FIT_DRAWS = 60
"""Bootstrap draws of a fit during a search, as the policy's own; enough for a verdict, a few tenths of a second."""

Question = tuple[float, float, float, float]
"""size, tokens, lr, batch."""


class Fit:
    """One fit and the promise of what waits under the new law, in a thread of its own or at once."""

    def __init__(
        self, records: list[TrialRecord], waiting: list[tuple[str, Question, float | None]], seed: int
    ) -> None:
        self._records = records
        self._waiting = waiting
        self._seed = seed
        self.law: Law | None = None
        self.promise: dict[str, float] = {}
        self.refusal = ""
        self.finished = False

    def __getstate__(self) -> dict[str, Any]:
        # the thread may be writing
        return {**self.__dict__, "promise": dict(self.promise) if self.finished else {}}

    def start(self, *, background: bool) -> None:
        if background:
            threading.Thread(target=self._run, name="metaopt-fit", daemon=True).start()
        else:
            self._run()

    def _run(self) -> None:
        try:
            law = fit(TrialTable.from_records(self._records), draws=FIT_DRAWS, seed=self._seed)
            for trial, question, best in self._waiting:
                self.promise[trial] = ask(law, question, best, None, STOP_BELOW).probability
            self.law = law
        except LawRefused as error:
            self.refusal = error.reason
        except Exception as error:  # a fit that fails must not end a cluster's search
            self.refusal = f"the fit failed: {type(error).__name__}: {error}"
        finally:
            self.finished = True


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
