"""Where a plan stands: pilots, law so far, decisions, the running loss against its band, cost. Nothing is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.plan import decide, store
from metaopt_hpo.plan.band import Band, band
from metaopt_hpo.plan.costs import Cost
from metaopt_hpo.plan.estimate import Rate
from metaopt_hpo.plan.model import Plan
from metaopt_hpo.plan.store import Decision, Folder
from metaopt_hpo.plan.words import part_of
from metaopt_hpo.report.words import count
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable


@dataclass(frozen=True)
class Running:
    """A run under way.

    Attributes:
        name: of the pilot, or "target".
        share: of its tokens that it has seen.
        loss: the last one reported.
        band: where that is expected; None where too few pilots are done, or the run has hardly begun.
    """

    name: str
    share: float
    loss: float
    band: Band | None

    @property
    def remark(self) -> str:
        """In words; empty within the band."""
        if self.band is None or not math.isfinite(self.loss) or self.band.holds(self.loss):
            return ""
        side = "above" if self.loss > self.band.high else "below"
        return (
            f"{self.name} has left its band: loss {self.loss:.4g} at {self.share:.0%} of the run is {side} "
            f"{self.band.low:.4g} to {self.band.high:.4g}"
        )


@dataclass(frozen=True)
class Status:
    """Where a plan stands.

    Attributes:
        folder: what was read.
        rate: what is known of the target's lr.
        running: runs under way.
        spent: by the pilots, measured where it was.
        planned: cost of the pilots that pay, on the hardware as measured.
        share: of the budget, spent.
        failed: engine's complaint where its store could not be read.
    """

    folder: Folder
    rate: Rate
    running: tuple[Running, ...]
    spent: Cost
    planned: Cost
    share: float
    failed: str = ""

    @property
    def plan(self) -> Plan:
        """The plan."""
        return self.folder.plan

    @property
    def state(self) -> str:
        """In a few words."""
        if self.folder.target is not None:
            return f"the target is {self.folder.target.state}"
        if self.running:
            return f"running {', '.join(r.name for r in self.running)}"
        last = self.folder.decisions[-1] if self.folder.decisions else None
        if last is None:
            return "not begun"
        return "pilots are done" if last.what == "skip" else "halted"

    @property
    def answer(self) -> str:
        """The page's first line."""
        t, rate = self.plan.target, self.rate
        pilots, done = self.folder.pilots, decide.finished(self.folder.pilots)
        if not done:
            goal = f"{count(t.size)} parameters on {count(t.tokens)} tokens"
            return f"No pilot is done yet of the plan for {goal}{f': {decide.why_none(pilots)}' if pilots else ''}."
        text = (
            f"Train {count(t.size)} parameters on {count(t.tokens)} tokens with lr {rate.value:.3g} "
            f"(90 % interval {rate.low:.2g} to {rate.high:.2g}), from {part_of(len(done), len(pilots), 'pilot')} that "
            f"cost {self.spent.flops / self.plan.target_cost.flops:.1%} of that run"
        )
        if self.folder.target is not None and math.isfinite(self.folder.target.loss):
            return f"{text}; it reached loss {self.folder.target.loss:.4f}."
        return f"{text}."


def status(path: Path) -> Status:
    """Read where a plan stands.

    Raises:
        PlanError: the folder holds no plan.
    """
    folder = store.read(path)
    pilots = list(folder.pilots)
    hardware = decide.measured(folder.plan.hardware, pilots)
    spent = decide.spent(pilots, hardware)
    planned = sum((hardware.cost(p.cost.flops, p.tokens) for p in folder.plan.chosen), Cost())
    under_way, failed = _under_way(folder)
    return Status(
        folder=folder,
        rate=decide.estimate(folder.plan, pilots).rate,
        running=tuple(_running(r, pilots) for r in under_way),
        spent=spent,
        planned=planned,
        share=folder.plan.budget.spent(spent, folder.plan.target_cost) / folder.plan.budget.amount,
        failed=failed,
    )


def _under_way(folder: Folder) -> tuple[list[TrialRecord], str]:
    """Runs that the engine's store holds and the table does not, yet."""
    names = {p.name for p in folder.plan.pilots} | {store.TARGET}
    done = {r.study for r in folder.records}
    places = [folder.path / store.STORE_FILE, (folder.path / store.STORE_FILE).with_suffix(".ray")]
    found: list[TrialRecord] = []
    failed = ""
    for place in places:
        if not place.exists():
            continue
        inner = [place] if place.is_file() else sorted(p for p in place.iterdir() if p.name in names - done)
        for source in inner:
            try:
                rows = TrialTable.read(source).records()
            except (MetaOptError, OSError, ValueError) as error:
                failed = str(error)
                continue
            for r in rows:
                study = r.study if place.is_file() else source.name
                if study in names - done and r.state == "running":
                    found.append(replace(r, study=study))
    return found, "" if found else failed


def _running(record: TrialRecord, pilots: Sequence[TrialRecord]) -> Running:
    share = record.tokens / record.planned_tokens if record.planned_tokens > 0 else math.nan
    return Running(record.study, share, record.loss, band(record, pilots))


def decisions(status: Status) -> list[tuple[Decision, TrialRecord | None]]:
    """Decisions, each with the run that it led to."""
    by_name = {r.study: r for r in status.folder.records}
    return [
        (d, by_name.get(store.TARGET if d.what == "target" else d.pilot)) for d in status.folder.decisions
    ]


def is_plan(path: Path) -> bool:
    """Whether a path is a plan's folder."""
    with suppress(OSError):
        return (path / store.PLAN_FILE).exists()
    return False
