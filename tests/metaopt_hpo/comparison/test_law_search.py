"""A comparison's law method: the predicted optimum first, then what the search's own runs leave of it."""

from __future__ import annotations

import math
from statistics import median

import pytest

from metaopt_hpo.comparison.engine import EngineError, SearchTask
from metaopt_hpo.comparison.law_search import TargetSearch
from metaopt_hpo.comparison.objective import Configuration, Objective, Report, no_report
from metaopt_hpo.trials.record import TrialRecord

BATCH, TOKENS = 1e4, 1e8


class Bowl(Objective):
    """A bowl whose centre falls as size^-0.4 up to 4e6 parameters and lies `off` ln units beside that above."""

    name = "bowl"
    sizes = (1e6, 2e6, 4e6, 3.2e7)

    def __init__(self, off: float = 0.0) -> None:
        self.off = off

    def cost(self, configuration: Configuration) -> float:
        return 6.0 * configuration.size * configuration.tokens

    def run(self, configuration: Configuration, report: Report = no_report) -> TrialRecord:
        c = configuration
        x = math.log(c.lr / (1e-2 * (c.size / 1e6) ** -0.4)) - (self.off if c.size > 4e6 else 0.0)
        return TrialRecord(
            size=c.size, tokens=c.tokens, batch=c.batch, lr=c.lr, loss=2.0 + 0.1 * x * x, trial=repr(c), cost=0.0
        )  # fmt: skip


def task(bowl: Bowl, **changes: object) -> SearchTask:
    pilots = [
        bowl.run(Configuration(size=s, tokens=TOKENS, batch=BATCH, lr=lr))
        for s in bowl.sizes[:3]
        for lr in (1e-3, 3e-3, 1e-2, 3e-2)
    ]
    fields: dict[str, object] = {
        "objective": bowl, "size": 3.2e7, "tokens": TOKENS, "batch": BATCH, "lr_bounds": (1e-5, 1.0), "budget": 1e30,
    }  # fmt: skip
    return SearchTask(**{**fields, "evidence": tuple(pilots), **changes})  # type: ignore[arg-type]


def drive(search: TargetSearch, job: SearchTask, count: int) -> list[TrialRecord]:
    own: list[TrialRecord] = []
    for _ in range(count):
        own.append(job.objective.run(job.configuration(search.propose(own))))
    return own


def test_the_optimum_comes_first_and_every_lr_is_new() -> None:
    job = task(Bowl())
    own = drive(TargetSearch(job), job, 8)
    assert own[0].lr == pytest.approx(1e-2 * 32**-0.4, rel=0.1)
    assert len({r.lr for r in own}) == 8
    assert [r.lr for r in drive(TargetSearch(job), job, 8)] == [r.lr for r in own]


def test_where_the_law_is_wrong_the_own_runs_correct_it() -> None:
    off = 0.8
    job = task(Bowl(off))
    centre = math.log(1e-2 * 32**-0.4) + off
    away = [math.log(r.lr) - centre for r in drive(TargetSearch(job), job, 12)]
    assert abs(away[0]) > 0.6
    assert min(map(abs, away)) < 0.15
    assert abs(median(away[6:])) < 0.4


def test_runs_that_diverged_or_are_under_way_are_not_proposed_again() -> None:
    job = task(Bowl())
    search = TargetSearch(job)
    first = search.propose([])
    diverged = TrialRecord(size=3.2e7, tokens=1e6, batch=BATCH, lr=first, loss=math.nan, state="diverged")
    lrs = {
        first,
        search.propose([diverged]),
        search.propose([], running=2),
        search.propose([diverged], running=2),
    }
    assert len(lrs) == 4


def test_evidence_that_bears_no_law_is_an_error() -> None:
    with pytest.raises(EngineError, match="pilot sizes"):
        TargetSearch(task(Bowl(), evidence=()))
    one = task(Bowl())
    with pytest.raises(EngineError, match="give no law"):
        TargetSearch(task(Bowl(), evidence=one.evidence[:2]))
