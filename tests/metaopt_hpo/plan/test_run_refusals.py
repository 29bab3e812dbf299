"""What a plan's run refuses, before anything starts; what it says of pilots that failed."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from metaopt_hpo.plan import store
from metaopt_hpo.plan.api import Plan
from metaopt_hpo.plan.costs import PlanError
from metaopt_hpo.plan.run import run
from metaopt_hpo.plan.status import status

pytest.importorskip("optuna")

Make = Callable[..., Plan]


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


def test_damaged_decisions_are_one_sentence(make_plan: Make, tmp_path: Path) -> None:
    run(make_plan(), tmp_path / "plan", most=1)
    (tmp_path / "plan" / store.DECISIONS_FILE).write_text("[{")
    with pytest.raises(PlanError, match="is damaged"):
        store.read(tmp_path / "plan")


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
