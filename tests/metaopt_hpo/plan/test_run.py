"""Running a plan: what is decided, that it is decided again after a kill, and that one process runs a folder."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from metaopt_hpo.comparison.jobs import Job, Runner
from metaopt_hpo.comparison.objective import Configuration, Report, no_report
from metaopt_hpo.locks import InUse, only_process
from metaopt_hpo.plan import store
from metaopt_hpo.plan.api import Plan
from metaopt_hpo.plan.costs import Budget
from metaopt_hpo.plan.run import run
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable

pytest.importorskip("optuna")

Make = Callable[..., Plan]
CHANGES = ("seconds", "params", "joules", "energy_source", "memory")
"""What two runs of one configuration may differ in."""


def without_time(table: TrialTable) -> list[dict[str, object]]:
    rows = [dataclasses.asdict(r) for r in table.records()]
    return [{k: repr(v) for k, v in row.items() if k not in CHANGES} for row in rows]


def test_pilots_run_while_they_pay_then_the_target(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan()
    result = plan.run(out=tmp_path / "plan", target=True)
    names = [d.pilot for d in result.decisions if d.what == "run"]
    assert names[:3] == ["w4", "w8", "w16"]
    assert [d.what for d in result.decisions][-2:] == ["skip", "target"]
    assert result.target is not None
    assert result.target.state == "complete"
    assert (result.target.strategy, result.target.lr) == ("wsd", pytest.approx(result.lr.value, rel=1e-3))
    best = 0.02 * (2.56e6 / 1e4) ** -0.3
    assert result.lr.low < best < result.lr.high
    assert result.lr.value == pytest.approx(best, rel=0.6)
    kept = TrialTable.read(tmp_path / "plan" / store.TABLE_FILE).records()
    assert [r.study for r in kept] == [*names, "target"]
    assert {r.method for r in kept} == {"pilot", "target"}
    assert all(d.reason for d in result.decisions)


def test_measured_throughput_takes_the_place_of_the_assumed_one(make_plan: Make, tmp_path: Path) -> None:
    result = run(make_plan(), tmp_path / "plan", most=1)
    assert result.plan.hardware.measured_flops is not None
    (record,) = result.table.records()
    assert result.plan.hardware.measured_flops == record.cost / record.seconds
    assert result.spent.gpu_hours == pytest.approx(record.seconds / 3600)


def test_nothing_finished_is_run_again(make_plan: Make, tmp_path: Path) -> None:
    first = run(make_plan(), tmp_path / "plan", most=2)
    again = run(make_plan(), tmp_path / "plan", objective=Never(make_plan()), most=0)
    assert without_time(again.table) == without_time(first.table)
    assert len(first.table) == 2
    whole = run(make_plan(), tmp_path / "plan", most=3)
    assert without_time(whole.table)[:2] == without_time(first.table)


class Never:
    """An objective that must not be asked."""

    name = "job"

    def __init__(self, plan: Plan) -> None:
        self.sizes = tuple(p.size for p in plan.pilots)

    def cost(self, configuration: Configuration) -> float:
        return 6.0 * configuration.size * configuration.tokens

    def run(self, configuration: Configuration, report: Report = no_report) -> TrialRecord:
        raise AssertionError("a finished run was started again")


def test_a_budget_ends_the_plan_before_it_is_passed(make_plan: Make, tmp_path: Path) -> None:
    target = make_plan().target_cost.flops
    two = (make_plan().pilots[0].cost + make_plan().pilots[1].cost).flops / target
    plan = make_plan(budget=Budget(kind="share", amount=two * 1.01, text="little"))
    result = run(plan, tmp_path / "plan")
    assert len(result.table) == 2
    assert "budget" in result.decisions[-1].reason
    assert result.spent.flops <= plan.budget.amount * target * (1 + 1e-9)


def test_an_interrupted_plan_decides_bitwise_the_same(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan()
    whole = run(plan, tmp_path / "whole", adapt=True)
    assert whole.target is not None
    assert whole.target.strategy == "metaoptimize"
    assert whole.target.params["expected"] == pytest.approx(whole.lr.value, rel=1e-3)
    file = tmp_path / "cut.toml"
    plan.write(file)
    code = f"""
import sys
from metaopt_hpo.plan.api import Plan
Plan.read({str(file)!r}).run(out={str(tmp_path / "cut")!r}, adapt=True)
"""
    for more in (1, 2):
        process = subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, "SLOW": "0.1"}, stderr=subprocess.DEVNULL
        )
        seen = len(list((tmp_path / "cut" / store.JOBS).glob("*")))
        end = time.monotonic() + 60
        # let it begin another run, then kill it inside that
        while process.poll() is None and time.monotonic() < end:
            if len(list((tmp_path / "cut" / store.JOBS).glob("*/stdout.log"))) >= seen + more:
                break
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    cut = run(plan, tmp_path / "cut", adapt=True)
    assert repr(cut.decisions) == repr(whole.decisions)
    assert without_time(cut.table) == without_time(whole.table)
    assert (tmp_path / "cut" / store.DECISIONS_FILE).read_bytes() == (
        tmp_path / "whole" / store.DECISIONS_FILE
    ).read_bytes()


def test_pilots_at_once_are_decided_before_any_has_ended(
    make_plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decisions of a round are a function of the rounds before it: not of which run ends first, nor of a kill."""

    def one_by_one(runner: Runner, jobs: list[Job], workers: int) -> dict[str, list[TrialRecord]]:
        order = jobs[::-1] if backwards else jobs
        return {job.study: runner.all([job], 1)[job.study] for job in order}

    monkeypatch.setattr(Runner, "_in_processes", one_by_one)
    plan = make_plan()
    backwards = False
    whole = run(plan, tmp_path / "whole", workers=3)
    first = [d for d in whole.decisions if d.what == "run"][:3]
    assert len({(d.lr, d.sd, d.spent) for d in first}) == 1  # nothing was known of any of them
    assert [r.study for r in whole.pilots] == [d.pilot for d in whole.decisions if d.what == "run"]
    run(plan, tmp_path / "cut", workers=3, most=1)
    backwards = True
    cut = run(plan, tmp_path / "cut", workers=3)
    assert repr(cut.decisions) == repr(whole.decisions)
    assert without_time(cut.table) == without_time(whole.table)
    with pytest.raises(ValueError, match="workers must be at least 1"):
        run(plan, tmp_path / "none", workers=0)


def test_pilots_at_once_run_in_processes_of_their_own(make_plan: Make, tmp_path: Path) -> None:
    result = run(make_plan(), tmp_path / "plan", workers=2, most=2)
    assert [r.study for r in result.table.records()] == ["w4", "w8"]
    assert {r.state for r in result.table.records()} == {"complete"}


def test_one_process_runs_a_folder(make_plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaopt_hpo.locks.only_process.__wrapped__.__defaults__", (0.1,))
    with only_process(tmp_path / "plan" / store.LOCK_FILE, "it"), pytest.raises(InUse, match="plan folder"):
        run(make_plan(), tmp_path / "plan")


@pytest.mark.usefixtures("ray_running")
def test_ray_runs_the_same_plan(make_plan: Make, tmp_path: Path) -> None:
    result = run(make_plan(), tmp_path / "ray", engine="ray", most=1)
    optuna = run(make_plan(), tmp_path / "optuna", most=1)
    assert [r.loss for r in result.table.records()] == [r.loss for r in optuna.table.records()]
    assert [d.reason for d in result.decisions] == [d.reason for d in optuna.decisions]


def test_the_command_says_what_it_found(make_plan: Make, tmp_path: Path) -> None:
    make_plan().write(tmp_path / "my.toml")
    command = [sys.executable, "-m", "metaopt_hpo.cli", "run", "my.toml", "--most", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "lr of the target" in done.stdout
    assert (tmp_path / "my" / "page.html").exists()
    assert json.loads((tmp_path / "my" / "decisions.json").read_text())[0]["pilot"] == "w4"
