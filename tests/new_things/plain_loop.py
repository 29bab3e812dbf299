"""A third integration, as small as one can be: trials of a plain loop, kept in a JSON file, judged by a law.

It is what CONTRIBUTING means by "a framework is two conversions": what it holds becomes a `TrialTable`, and a verdict
becomes its decision. What the runs of all frameworks share is `FrameworkRun`'s.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from metaopt_hpo import Law, LawRefused, TrialRecord, TrialTable, fit
from metaopt_hpo.atomic import write_text
from metaopt_hpo.training.ending import RunStopped
from metaopt_hpo.training.framework_run import FrameworkRun


class Study:
    """Trials in a JSON file, which is replaced whole after every run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = TrialTable.read(path).records() if path.exists() else []
        self._law: tuple[int, Law | None] = (-1, None)

    def table(self) -> TrialTable:
        """Conversion one: what the framework holds, as a table."""
        return TrialTable.from_records(self.records)

    def law(self) -> Law | None:
        """Fitted anew when there is one more trial; None while there is too little data."""
        if self._law[0] != len(self.records):
            try:
                law = fit(self.table(), draws=40) if self.records else None
            except LawRefused:
                law = None
            self._law = (len(self.records), law)
        return self._law[1]

    def keep(self, record: TrialRecord) -> None:
        self.records.append(record)
        write_text(self.path, self.table().frame.to_json(orient="records"))

    def best(self, size: float, tokens: float) -> float | None:
        """Lowest loss of the finished trials of this size and length."""
        same = (
            r for r in self.records if (r.size, r.target_tokens) == (size, tokens) and r.state == "complete"
        )
        return min((r.loss for r in same if math.isfinite(r.loss)), default=None)


class Run(FrameworkRun):
    """One trial of a study: asks its law, and keeps its record at the end."""

    def __init__(self, study: Study, model: Any, strategy: Any, **options: Any) -> None:
        super().__init__(model, strategy, **options)
        self.study, self.strategy, self.told = study, strategy, []

    def report(self, tokens: int, loss: float) -> None:
        self.told.append((tokens, loss))

    def ask(self) -> str | None:
        """Conversion two: the verdict, as the framework's decision."""
        law = self.study.law()
        if law is None or self.strategy.tunes_lr:
            return None
        verdict = law.verdict(
            size=self.size,
            tokens=self.target_tokens,
            lr=self.strategy.lr,
            batch=self.batch,
            incumbent=self.study.best(self.size, self.target_tokens),
            curve=self.told,
        )
        return verdict.reason if verdict.action == "stop" else None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        super().__exit__(kind, error, trace)
        if error is None or isinstance(error, RunStopped):
            self.study.keep(self.record())
        return isinstance(error, RunStopped)
