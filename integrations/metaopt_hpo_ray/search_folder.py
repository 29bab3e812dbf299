"""The folder of a search: what it was run for, and the trials that an earlier process left in it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from metaopt_hpo.atomic import WriteError, write_text
from metaopt_hpo.comparison.engine import EngineError, SearchTask, changed_facts, facts_of
from metaopt_hpo.comparison.methods import Method
from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.logbook_file import LogbookError, parse
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo_ray.journal import JOURNAL

TASK = "task.json"
"""Beside the trials: what they were run for."""


def folder_of(store: str, study: str) -> Path:
    """Where a store keeps a study's trials."""
    base = Path(store)
    if base.suffix:
        base = base.with_suffix(".ray")
    return (base / re.sub(r"[^A-Za-z0-9._-]", "_", study)).resolve()


def claim(folder: Path, method: Method, task: SearchTask) -> None:
    """Refuse a folder that holds a search for something else."""
    facts = facts_of(method, task)
    path = folder / TASK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_text(path, json.dumps(facts, indent=2, sort_keys=True))
        elif changed_facts(facts, parse(path.read_text(encoding="utf-8", errors="replace"))):
            raise EngineError(f"{folder} holds a search for another task; choose another store or study")
    except OSError as error:
        raise EngineError(
            f"cannot keep trials in {folder}: {error.strerror}; choose another store"
        ) from error
    except WriteError as error:
        raise EngineError(f"cannot keep trials in {folder}: {error}") from error


def finished(part: Path, own: Own, first: int) -> list[TrialRecord]:
    """Trials of an earlier process; one that was under way has failed with what it had spent."""
    journal = part / JOURNAL
    if not journal.exists():
        return []
    try:
        book = Logbook.replay(journal.read_text(encoding="utf-8").splitlines())
    except (LogbookError, UnicodeDecodeError) as error:
        raise EngineError(f"{journal} cannot be read: {error}; move {part} away to begin anew") from error
    for key, entry in book.entries.items():
        if not entry.closed:
            book.close(key, "failed", "the process ended before the trial did")
    return [own(e.record(), first + i) for i, e in enumerate(book.entries.values())]


@dataclasses.dataclass(frozen=True)
class Own:
    """Gives records the names of the search they belong to."""

    method: Method
    study: str
    workload: str

    def __call__(self, record: TrialRecord, number: int) -> TrialRecord:
        reason = record.reason
        if record.state == "pruned":
            reason = (
                f"{self.method.title} stopped it after {record.tokens:g} tokens at loss {record.loss:.4g}"
            )
        return dataclasses.replace(
            record,
            trial=str(number),
            study=self.study,
            method=self.method.name,
            workload=self.workload,
            reason=reason,
        )
