"""Running a plan: what is decided, that it is decided again after a kill, and that one process runs a folder."""

from __future__ import annotations

import dataclasses
import json
import math
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
from metaopt_hpo.plan import decide, store
from metaopt_hpo.plan.api import Plan
from metaopt_hpo.plan.costs import Budget, PlanError
from metaopt_hpo.plan.estimate import Estimate
from metaopt_hpo.plan.run import run
from metaopt_hpo.plan.status import status
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


def test_a_round_keeps_to_the_budget_and_buys_no_pilot_that_the_others_make_idle(make_plan: Make) -> None:
    plan = make_plan()
    for budget in (0.001, 0.01, 0.05, 0.5):
        held = dataclasses.replace(plan, budget=Budget(kind="share", amount=budget, text="some"))
        chosen = [c.pilot for c in decide.together(held, [], [], 9) if c.pilot is not None]
        assert sum(p.cost.flops for p in chosen) <= budget * plan.target_cost.flops * (1 + 1e-9)
        assert [p.name for p in chosen] == [p.name for p in plan.pilots][: len(chosen)]
    one = decide.together(plan, [], [], 1)
    assert one[0] == decide.choose(plan, [], [])


@pytest.mark.parametrize("off", [0.05, 0.3, 1.0, 4.0, 25.0])
def test_a_cells_rates_bracket_its_optimum(off: float) -> None:
    """Wherever the law puts the first run, a few more lie to both sides of the best rate."""
    best, tried = 1e-2, []
    for _ in range(9):
        lr, _ = decide._next_rate(tried, best * off)
        assert all(abs(math.log(lr / other)) > 1e-3 for other, _ in tried)
        tried.append((lr, math.log(lr / best) ** 2 if lr < 8 * best else math.inf))
    lowest = min(tried, key=lambda t: t[1])[0]
    assert min(t[0] for t in tried) < lowest < max(t[0] for t in tried)
    assert abs(math.log(lowest / best)) <= math.log(2) / 2 + 1e-9
    # under way, nothing says which side is better: to either side in turn
    assert decide._next_rate([(1e-3, math.nan), (2e-3, math.nan)], 5e-3)[0] == pytest.approx(5e-4)


@pytest.mark.parametrize(("low", "high"), [(1e-3, 2e-2), (1e-2, 1e-1), (8e-3, 1.4e-2), (9.9e-3, 1.01e-2)])
def test_a_cells_rates_keep_to_the_range_and_none_is_run_twice(low: float, high: float) -> None:
    for best in (low / 5, math.sqrt(low * high), high * 5):
        tried: list[tuple[float, float | None]] = []
        for _ in range(6):
            lr, _ = decide._next_rate(tried, math.sqrt(low * high), low, high)
            assert low <= lr <= high
            assert all(abs(math.log(lr / other)) > 1e-6 for other, _ in tried)
            tried.append((lr, math.log(lr / best) ** 2))


def test_a_failed_rate_is_no_bad_one_unless_it_fails_again() -> None:
    """One that failed lies beyond the best: it is tried again, and taken for too high where it fails once more."""
    tried: list[tuple[float, float | None]] = [(1e-3, 3.0), (2e-3, 2.5), (4e-3, None)]
    again = decide._next_rate(tried, 1e-3)[0]
    assert again == pytest.approx(4e-3)
    between = decide._next_rate([*tried, (4e-3, None)], 1e-3)[0]
    assert 1e-3 < between < 4e-3
    assert decide._next_rate([(1e-3, None)], 1e-3)[0] != pytest.approx(1e-3)


def test_pilots_that_all_failed_say_nothing_of_the_lr(
    make_plan: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan()
    (tmp_path / "job.py").write_text("raise SystemExit('no data at all')")
    options = {**plan.workload_options, "retries": "0"}
    broken = Plan.of(dataclasses.replace(plan, workload_options=options))
    with pytest.raises(PlanError, match=r"target is not run: .*no data at all.*jobs"):
        run(broken, tmp_path / "plan", target=True)
    assert "no data at all" in status(tmp_path / "plan").answer
    with pytest.raises(PlanError, match=r"no pilot has finished.*no data at all"):
        broken.recipe(tmp_path / "plan")
    broken.write(tmp_path / "plan.toml")
    command = [sys.executable, "-m", "metaopt_hpo.cli", "run", "plan.toml", "--no-page"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no pilot has finished" in done.stderr.splitlines()[-1]


def test_runs_that_found_an_lr_and_do_not_say_it_are_no_evidence(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan()
    text = (tmp_path / "job.py").read_text()
    (tmp_path / "job.py").write_text(text.replace("/found.json", "/elsewhere.json"))
    result = run(plan, tmp_path / "plan", most=1)
    assert result.records[0].state == "complete"
    assert "found.json" in result.records[0].reason
    assert any("no pilot says anything of the lr" in w for w in plan.recipe(result.table).warnings)


def test_one_process_runs_a_folder(make_plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaopt_hpo.locks.only_process.__wrapped__.__defaults__", (0.1,))
    with only_process(tmp_path / "plan" / store.LOCK_FILE, "it"), pytest.raises(InUse, match="plan folder"):
        run(make_plan(), tmp_path / "plan")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"workload": " "}, "names no workload"),
        ({"workload": "no-such-program {width} {lr} {steps}"}, "no program"),
        ({"workload": "missing_job.py"}, "cannot be read"),
        ({"workload": "text-lm", "workload_options": {"height": "3"}}, "has no option 'height'"),
        ({"workload": f"{sys.executable} job.py {{width}} {{lr}} {{steps}}"}, "no place for {strategy}"),
        ({"workload_options": {"sizes": "4:1", "batch": "100"}}, "no file|parameters and workload"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_starts(
    make_plan: Make, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    from metaopt_hpo.errors import MetaOptError

    if changes.get("workload") == " ":
        plan = dataclasses.replace(make_plan(), workload="text-lm")
        object.__setattr__(plan, "workload", " ")
        from metaopt_hpo.plan.jobs import objective_of

        with pytest.raises(PlanError, match=says):
            objective_of(plan, tmp_path)
        return
    with pytest.raises(MetaOptError, match=says) as caught:
        run(make_plan(**changes), tmp_path / "plan")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "plan").exists()


def test_edits_that_no_program_could_run_are_said_before_anything_starts(
    make_plan: Make, tmp_path: Path
) -> None:
    first, *others = make_plan().pilots
    for change, said in (
        ({"strategy": "wds", "lr": 0.01}, "pilot 'w4'.*wds"),
        ({"batch": 1e6}, "less than one step"),
    ):
        with pytest.raises(PlanError, match=said):
            run(make_plan(pilots=(dataclasses.replace(first, **change), *others)), tmp_path / "plan")
    assert not (tmp_path / "plan").exists()


def test_a_target_that_the_workload_lacks_is_refused_before_its_pilots(
    make_plan: Make, tmp_path: Path
) -> None:
    larger = dataclasses.replace(make_plan().target, size=1e7)
    with pytest.raises(PlanError, match="the target has 1e\\+07 parameters and workload"):
        run(make_plan(target=larger), tmp_path / "plan", target=True)
    assert not (tmp_path / "plan").exists()
    assert run(make_plan(target=larger), tmp_path / "plan", most=0).records == ()


def test_a_folder_of_another_plan_is_refused(make_plan: Make, tmp_path: Path) -> None:
    run(make_plan(), tmp_path / "plan", most=1)
    other = dataclasses.replace(make_plan().target, tokens=90_000.0)
    with pytest.raises(PlanError, match="another target"):
        run(make_plan(target=other), tmp_path / "plan")


def test_an_edited_pilot_needs_a_name_of_its_own(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan()
    run(plan, tmp_path / "plan", most=1)
    edited = dataclasses.replace(plan.pilots[0], seed=5)
    with pytest.raises(PlanError, match="w4 was run with seed 0 and the plan now says 5"):
        run(make_plan(pilots=(edited, *plan.pilots[1:])), tmp_path / "plan")
    edited = dataclasses.replace(plan.pilots[0], tokens=30_000.0)
    with pytest.raises(PlanError, match=r"w4 was run with tokens 20000.0 and the plan now says 30000.0"):
        run(make_plan(pilots=(edited, *plan.pilots[1:])), tmp_path / "plan")


def test_an_edited_rate_needs_a_name_of_its_own(make_plan: Make, tmp_path: Path) -> None:
    first, *others = make_plan().pilots
    given = dataclasses.replace(first, strategy="wsd", lr=0.01)
    run(make_plan(pilots=(given, *others)), tmp_path / "plan", most=1)
    edited = dataclasses.replace(given, lr=0.02)
    with pytest.raises(PlanError, match=r"run with lr 0.01 and the plan now says 0.02"):
        run(make_plan(pilots=(edited, *others)), tmp_path / "plan")


def test_a_failed_pilot_counts_and_the_plan_goes_on(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan()
    text = (tmp_path / "job.py").read_text()
    (tmp_path / "job.py").write_text(
        text.replace("size = 625", "if width == 8: sys.exit('broken')\nsize = 625")
    )
    result = run(
        dataclasses.replace(plan, workload_options={**plan.workload_options, "retries": "0"}), tmp_path / "p"
    )
    states = {r.study: r.state for r in result.table.records()}
    assert states["w8"] == "failed"
    assert states["w16"] == "complete"
    assert "broken" in next(r.reason for r in result.table.records() if r.study == "w8")


def test_the_law_learns_what_found_rates_are_off_by() -> None:
    def record(size: float, lr: float, loss: float, own: bool) -> TrialRecord:
        return TrialRecord(
            size=size, tokens=1e5, batch=100.0, lr=1e-3 if own else lr, loss=loss,
            strategy="metaoptimize" if own else "wsd", tuning="self" if own else "external",
            found_lr=lr if own else math.nan,
        )  # fmt: skip

    def best(size: float) -> float:
        return 0.02 * (size / 1e4) ** -0.3

    sizes = (1e4, 3e4, 1e5)
    own = [record(s, 0.5 * best(s), 2.0, True) for s in sizes]
    grid = [
        record(s, best(s) * f, 2.0 * math.exp(0.05 * math.log(f) ** 2), False)
        for s in sizes
        for f in (0.5, 1.0, 2.0)
    ]
    alone = Estimate(own, 1e6, 1e5, lr=(1e-4, 1e-1))
    both = Estimate([*own, *grid], 1e6, 1e5, lr=(1e-4, 1e-1))
    assert both.offset[0] == pytest.approx(math.log(0.5), abs=0.3)  # the prior draws it to zero
    assert abs(math.log(both.rate.value / best(1e6))) < abs(math.log(alone.rate.value / best(1e6)))
    assert both.rate.sd < alone.rate.sd
    # more runs never leave more unknown, and order does not matter
    assert alone.sd_after([(3e4, 1e5, True)]) < alone.rate.sd
    assert Estimate([*grid[::-1], *own], 1e6, 1e5, lr=(1e-4, 1e-1)).rate.value == pytest.approx(
        both.rate.value
    )


def test_decisions_are_a_function_of_the_records(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan()
    records = run(plan, tmp_path / "plan", most=3).table.records()
    done = [r.study for r in records]
    assert decide.choose(plan, done, records) == decide.choose(plan, done, list(records))


def test_damaged_decisions_are_one_sentence(make_plan: Make, tmp_path: Path) -> None:
    run(make_plan(), tmp_path / "plan", most=1)
    (tmp_path / "plan" / store.DECISIONS_FILE).write_text("[{")
    with pytest.raises(PlanError, match="is damaged"):
        store.read(tmp_path / "plan")


@pytest.mark.usefixtures("ray_running")
def test_ray_runs_the_same_plan(make_plan: Make, tmp_path: Path) -> None:
    result = run(make_plan(), tmp_path / "ray", engine="ray", most=1)
    optuna = run(make_plan(), tmp_path / "optuna", most=1)
    assert [r.loss for r in result.table.records()] == [r.loss for r in optuna.table.records()]
    assert [d.reason for d in result.decisions] == [d.reason for d in optuna.decisions]


class Never:
    """An objective that must not be asked."""

    name = "job"

    def __init__(self, plan: Plan) -> None:
        self.sizes = tuple(p.size for p in plan.pilots)

    def cost(self, configuration: Configuration) -> float:
        return 6.0 * configuration.size * configuration.tokens

    def run(self, configuration: Configuration, report: Report = no_report) -> TrialRecord:
        raise AssertionError("a finished run was started again")


def test_the_command_says_what_it_found(make_plan: Make, tmp_path: Path) -> None:
    make_plan().write(tmp_path / "my.toml")
    command = [sys.executable, "-m", "metaopt_hpo.cli", "run", "my.toml", "--most", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "lr of the target" in done.stdout
    assert (tmp_path / "my" / "page.html").exists()
    assert json.loads((tmp_path / "my" / "decisions.json").read_text())[0]["pilot"] == "w4"
