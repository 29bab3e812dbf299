"""Runs a plan: pilots while they pay, one after another or several at once, then the target if it is wanted.

Every run is a search of an engine, of one run, in the plan's store: Optuna's or Ray Tune's resuming is the plan's. What
is decided is a function of the records so far, so that a plan which was interrupted anywhere goes on as it would have.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from metaopt_hpo.comparison.engine import SearchEngine, SearchTask, get_engine
from metaopt_hpo.comparison.jobs import Job, Runner
from metaopt_hpo.comparison.objective import Objective
from metaopt_hpo.locks import only_process
from metaopt_hpo.plan import decide, store
from metaopt_hpo.plan.costs import Cost, PlanError
from metaopt_hpo.plan.decide import Choice
from metaopt_hpo.plan.estimate import Estimate, Rate
from metaopt_hpo.plan.jobs import objective_of
from metaopt_hpo.plan.model import LAW_LR, SELF_TUNING, Pilot, Plan
from metaopt_hpo.plan.store import Decision
from metaopt_hpo.strategies import get as get_strategy
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable

WIDEST, NARROWEST = 4.0, 1.1
"""Limits of the factor about the law's lr in which the target's run may move."""

Progress = Callable[[Decision, TrialRecord | None], None]
"""Called with each decision, and again with its record once the run has ended."""


@dataclass(frozen=True)
class PlanRun:
    """What running a plan has given so far.

    Attributes:
        plan: the plan, its hardware's throughput measured.
        folder: where everything is kept.
        records: the trials, the target's last where it was run.
        decisions: in order.
        estimate: the law of lr from the pilots.
        target: record of the target's run, or None.
    """

    plan: Plan
    folder: Path
    records: tuple[TrialRecord, ...]
    decisions: tuple[Decision, ...]
    estimate: Estimate
    target: TrialRecord | None

    @property
    def pilots(self) -> tuple[TrialRecord, ...]:
        """Records of the pilots."""
        return tuple(r for r in self.records if r.method != store.TARGET)

    @property
    def finished(self) -> tuple[TrialRecord, ...]:
        """Those of the pilots that ran to their end: the others cost and say nothing of the lr."""
        return decide.finished(self.pilots)

    @property
    def table(self) -> TrialTable:
        """The trials as a table.

        Raises:
            TableError: there is none yet.
        """
        return TrialTable.from_records(self.records, warn=False)

    @property
    def lr(self) -> Rate:
        """The target's best lr, as the pilots say."""
        return self.estimate.rate

    @property
    def spent(self) -> Cost:
        """By the pilots."""
        return decide.spent(self.pilots, self.plan.hardware)


def run(
    plan: Plan,
    folder: str | os.PathLike[str],
    *,
    engine: str | SearchEngine = "optuna",
    target: bool = False,
    adapt: bool = False,
    objective: Objective | None = None,
    device: str = "cpu",
    threads: int = 1,
    workers: int = 1,
    most: int | None = None,
    progress: Progress | None = None,
) -> PlanRun:
    """Run a plan's pilots while they pay, or what is left of them, and write their table.

    Args:
        plan: what to run.
        folder: its results; one that holds the same plan is resumed, nothing finished is run again.
        engine: "optuna" (SQLite in the folder), "ray", or an engine.
        target: run the target at last, on its schedule at the law's lr.
        adapt: let MetaOptimize move the target's lr from there, within the law's interval, instead of the schedule.
        objective: what trains; None makes it from the plan's workload.
        device: for our own workloads.
        threads: torch threads of a run; results are deterministic for a given number.
        workers: pilots at once, each in a process of its own. They are decided together, before any of them has
            ended, so that more workers need less time and decide with less; the decisions do not depend on which ends
            first. A plan resumed with another number may choose other rates for what is left.
        most: runs to start in this call; None is no limit.
        progress: told of each decision and each record.

    Raises:
        PlanError: the folder holds another plan, or the workload does not fit this one.
        ValueError: `workers` is below 1.
        InUse: another process runs this folder.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers!r}")
    path = Path(folder)
    trained = objective or objective_of(plan, path, device=device, target=target or adapt)
    if workers > 1 and getattr(getattr(trained, "job", None), "shares_losses", False):
        raise PlanError(
            "losses names one file for all runs, which several at once cannot share: name one below {out}, or run one "
            "at a time"
        )
    with only_process(path / store.LOCK_FILE, f"plan folder {path}"):
        store.claim(path, plan)
        _threads(threads)
        chosen = get_engine(engine) if isinstance(engine, str) else engine
        running = _Running(plan, path, chosen, trained, progress, most, workers, threads)
        return running.all(target or adapt, adapt)


class _Running:
    def __init__(
        self,
        plan: Plan,
        folder: Path,
        engine: SearchEngine,
        objective: Objective,
        progress: Progress | None,
        most: int | None,
        workers: int,
        threads: int,
    ) -> None:
        self._plan, self._folder, self._engine, self._objective = plan, folder, engine, objective
        self._progress = progress
        self._most = math.inf if most is None else most
        self._workers, self._threads = workers, threads
        self._known = {r.study: r for r in store.read(folder).records}
        self._records: list[TrialRecord] = []
        self._decisions: list[Decision] = []

    def all(self, target: bool, adapt: bool) -> PlanRun:
        done: list[str] = []
        started = 0
        while True:
            choices = decide.together(self._plan, done, self._records, self._workers)
            chosen: list[Choice] = []
            for choice in choices:
                new = choice.pilot is not None and choice.pilot.name not in self._known
                if new and started >= self._most:
                    break
                started += new
                chosen.append(choice)
            decided = [self._decision("run" if c.pilot else "skip", c.reason, c.pilot) for c in chosen]
            next_pilots = [c.pilot for c in chosen if c.pilot is not None]
            if not next_pilots:
                break
            self._records += self._search([(p.name, self._task(p), "pilot") for p in next_pilots], decided)
            done += [p.name for p in next_pilots]
            self._keep()
            if len(chosen) < len(choices):
                break
        pilots = list(self._records)
        law = decide.estimate(self._plan, pilots)
        if target and pilots and store.TARGET not in self._known and not decide.finished(pilots):
            raise PlanError(f"no pilot has finished, so the target is not run: {decide.why_none(pilots)}")
        found = self._target(law, adapt) if target and started < self._most else self._known.get(store.TARGET)
        if found is not None and found not in self._records:
            self._records.append(found)
        self._keep()
        measured = replace(self._plan, hardware=decide.measured(self._plan.hardware, pilots))
        return PlanRun(measured, self._folder, tuple(self._records), tuple(self._decisions), law, found)

    def _target(self, law: Estimate, adapt: bool) -> TrialRecord:
        t = self._plan.target
        rate = law.rate
        within = min(max(rate.high / rate.value, NARROWEST), WIDEST)
        start = float(f"{rate.value:.4g}")
        how = f"MetaOptimize within a factor {within:.2f}, its interval at 90 %" if adapt else t.schedule
        strategy = SELF_TUNING if adapt else t.schedule
        decision = self._decision(
            "target", f"at the law's lr {start:.3g}, {how}", None,
            size=t.size, tokens=t.tokens, strategy=strategy, rate=start,
        )  # fmt: skip
        batch = t.batch or self._batch()
        task = SearchTask(
            objective=self._objective,
            size=t.size,
            tokens=t.tokens,
            batch=batch,
            lr_bounds=(start, start),
            budget=0.0,
            seed=self._plan.vary.seeds[0],
            strategy=strategy,
            options={"expected": start, "within": float(f"{within:.4g}")} if adapt else {},
        )
        return self._search([(store.TARGET, task, store.TARGET)], [decision])[0]

    def _batch(self) -> float:
        batches = [r.batch for r in self._records]
        if not batches:
            raise PlanError("the plan says no batch for the target and has run no pilot; add target.batch")
        return batches[-1]

    def _task(self, pilot: Pilot) -> SearchTask:
        """A pilot as a search: a grid of one point."""
        # a run that finds its own lr starts anywhere
        lr = float(pilot.lr) if isinstance(pilot.lr, float | int) else get_strategy(pilot.strategy)().lr
        return SearchTask(
            objective=self._objective,
            size=pilot.size,
            tokens=pilot.tokens,
            batch=pilot.batch,
            lr_bounds=(lr, lr),
            budget=0.0,
            seed=pilot.seed,
            strategy=pilot.strategy,
        )

    def _search(
        self, runs: Sequence[tuple[str, SearchTask, str]], decisions: Sequence[Decision]
    ) -> list[TrialRecord]:
        """Records of (study, task, role), those known already included, in the order of `runs`."""
        jobs = []
        for study, task, _ in runs:
            if study in self._known:
                planned = next((p.lr for p in self._plan.pilots if p.name == study), None)
                _check_same(self._known[study], task, study, None if planned == LAW_LR else planned)
            else:
                cost = self._objective.cost(task.configuration(task.lr_bounds[0]))
                jobs.append(Job("grid", replace(task, budget=cost), study))
        runner = Runner(str(self._folder / store.STORE_FILE), self._engine, self._threads, None)
        found = runner.all(jobs, self._workers) if jobs else {}
        records = []
        for (study, _, role), decision in zip(runs, decisions, strict=True):
            record = self._known.get(study)
            if record is None:
                if not found[study]:
                    raise PlanError(
                        f"engine {self._engine.name!r} started no run for {study}; look at its store in {self._folder}"
                    )
                record = replace(found[study][-1], method=role)
            if self._progress is not None:
                self._progress(decision, record)
            records.append(record)
        return records

    def _decision(self, what: str, reason: str, pilot: Pilot | None, **more: object) -> Decision:
        law = decide.estimate(self._plan, self._records).rate
        hardware = decide.measured(self._plan.hardware, self._records)
        cost = decide.spent(self._records, hardware)
        facts: dict[str, object] = dict(more)
        if pilot is not None:
            facts = {
                "pilot": pilot.name, "size": pilot.size, "tokens": pilot.tokens, "strategy": pilot.strategy,
                "rate": pilot.lr if isinstance(pilot.lr, float) else math.nan,
            }  # fmt: skip
        decision = Decision(
            number=len(self._decisions) + 1,
            what=what,
            reason=reason,
            lr=law.value,
            sd=law.sd,
            spent=self._plan.budget.spent(cost, self._plan.target_cost),
            **facts,  # type: ignore[arg-type]
        )
        self._decisions.append(decision)
        store.write_decisions(self._folder, self._decisions)
        if self._progress is not None:
            self._progress(decision, None)
        return decision

    def _keep(self) -> None:
        shown = [*self._records]
        have = {r.study for r in shown}
        # runs of a plan that was edited since stay in the table: they were paid for
        shown += [r for r in self._known.values() if r.study not in have]
        store.write_records(self._folder, shown)


def _check_same(kept: TrialRecord, task: SearchTask, study: str, lr: object) -> None:
    """Refuse a run of another configuration under the same name: the plan was edited after it was run.

    Args:
        kept: the run as it is kept.
        task: as the plan now has it.
        study: its name.
        lr: that the plan names; None where it is found or chosen from the runs before.
    """
    steps = math.ceil(task.tokens / task.batch - 1e-9)
    for name, was, now in (
        ("size", kept.size, task.size),
        ("batch", kept.batch, task.batch),
        ("tokens", kept.planned_tokens, task.tokens),
        ("lr", kept.lr, lr),
        ("seed", kept.seed, task.seed),
        ("strategy", kept.strategy, task.strategy),
    ):
        same = was == now or now is None
        if name == "tokens":
            same = (
                abs(kept.planned_tokens - steps * task.batch) <= task.batch
            )  # whole steps, rounded either way
        if not same:
            raise PlanError(
                f"{study} was run with {name} {was} and the plan now says {now}; give an edited pilot a name of its "
                "own, or choose another --out"
            )


def _threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)
