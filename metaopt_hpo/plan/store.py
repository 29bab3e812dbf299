"""A plan's folder: the plan it was started with, the trial table, what was decided and why.

`plan.toml` → `plan/` beside it, with `trials.parquet`, `decisions.json`, `trials.sqlite` (Optuna) or `trials.ray` and,
for a training program, its runs' logs in `jobs/`. Readers need no lock: every file appears whole.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from metaopt_hpo.atomic import write_text
from metaopt_hpo.plan import model, toml
from metaopt_hpo.plan.costs import PlanError
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable

PLAN_FILE = "plan.toml"
TABLE_FILE = "trials.parquet"
DECISIONS_FILE = "decisions.json"
STORE_FILE = "trials.sqlite"
LOCK_FILE = "run.lock"
JOBS = "jobs"
TARGET = "target"
"""Study of the target's run."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One decision of a running plan.

    Attributes:
        number: from 1.
        what: "run" a pilot, "skip" what is left, or run the "target".
        pilot: name of the pilot; empty where none is meant.
        reason: one sentence.
        lr, sd: what was known of the target's lr then (`sd` of its logarithm).
        spent: of the budget, in its own unit.
        size, tokens, strategy, rate: of the run, `rate` being the peak lr of a schedule.
    """

    number: int
    what: str
    pilot: str = ""
    reason: str
    lr: float
    sd: float
    spent: float
    size: float = math.nan
    tokens: float = math.nan
    strategy: str = ""
    rate: float = math.nan


@dataclass(frozen=True)
class Folder:
    """A plan's folder, read as it is."""

    path: Path
    plan: model.Plan
    records: tuple[TrialRecord, ...]
    decisions: tuple[Decision, ...]

    @property
    def pilots(self) -> tuple[TrialRecord, ...]:
        """Records of the pilots."""
        return tuple(r for r in self.records if r.method != TARGET)

    @property
    def target(self) -> TrialRecord | None:
        """Record of the target's run, where there is one."""
        return next((r for r in self.records if r.method == TARGET), None)


def folder_of(plan_file: str | os.PathLike[str]) -> Path:
    """Where a plan file's results are kept: beside it, without its `.toml`, or with `-run` where it has none."""
    path = Path(plan_file)
    return path.with_suffix("") if path.suffix else path.with_name(f"{path.name}-run")


def read(path: str | os.PathLike[str]) -> Folder:
    """Read a plan's folder.

    Raises:
        PlanError: it holds none, or a damaged one.
    """
    folder = Path(path)
    if not (folder / PLAN_FILE).exists():
        raise PlanError(f"{folder} holds no running plan; start one with: metaopt-hpo run plan.toml")
    plan = toml.read(model.Plan, folder / PLAN_FILE)
    table = folder / TABLE_FILE
    records = TrialTable.read(table).records() if table.exists() else []
    return Folder(folder, plan, tuple(records), tuple(_decisions(folder / DECISIONS_FILE)))


def write_records(folder: Path, records: Sequence[TrialRecord]) -> None:
    """Replace the trial table."""
    if records:
        TrialTable.from_records(records, warn=False).write(folder / TABLE_FILE)


def write_decisions(folder: Path, decisions: Sequence[Decision]) -> None:
    """Replace the list of decisions."""
    rows = [{k: v for k, v in asdict(d).items() if v == v} for d in decisions]
    write_text(folder / DECISIONS_FILE, json.dumps(rows, indent=1) + "\n")


def claim(folder: Path, plan: model.Plan) -> None:
    """Keep the plan in its folder; what was run for another target or workload is not taken for this one's.

    Raises:
        PlanError: the folder holds runs of another plan.
    """
    held = None
    with suppress(PlanError):
        held = read(folder)
    for name in ("workload", "workload_options", "target"):
        if held is not None and held.records and getattr(held.plan, name) != getattr(plan, name):
            raise PlanError(
                f"{folder} holds runs of a plan with another {name.replace('_', ' ')}; choose another --out, or move "
                "it away"
            )
    toml.write(plan, folder / PLAN_FILE)


def _decisions(path: Path) -> list[Decision]:
    if not path.exists():
        return []
    known = {f.name for f in fields(Decision)}
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return [Decision(**{k: v for k, v in row.items() if k in known}) for row in rows]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise PlanError(f"{path} is damaged ({error}); remove it: the next run writes it anew") from None
