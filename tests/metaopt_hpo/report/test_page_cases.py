"""Pages of comparisons in which something is missing, failed or refused; and their files."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parsed_page import SECTIONS, Parsed, plain

from metaopt_hpo.comparison.methods import available_methods
from metaopt_hpo.comparison.outcome import OutcomeError, judge
from metaopt_hpo.comparison.results import PLAN_FILE, TABLE_FILE, CompareError, Comparison
from metaopt_hpo.report import (
    ReportError,
    render,
    report_from_folder,
    words,
    write_report,
)

pytestmark = pytest.mark.usefixtures("tables_may_warn")


def _all_diverged(records: list[Any], method: str) -> list[Any]:
    return [
        dataclasses.replace(
            r, state="diverged", loss=math.nan, found_lr=math.nan, reason="exploded", curve=None
        )
        if r.method == method
        else r
        for r in records
    ]


def test_one_seed_is_said_to_have_no_interval(comparison: Callable[..., Comparison]) -> None:
    text = Parsed(render(judge(comparison(seeds=(7,)))))
    assert "one seed, no interval" in text.within("section", id="methods")
    assert "One seed gives no interval" in text.within("section", id="verdict")
    assert "±" not in text.within("section", id="methods")
    assert "inf" not in re.findall(r"[a-z]+", text.within("main"))


def test_a_method_without_a_finite_trial_is_shown_as_such(
    comparison: Callable[..., Comparison], records: Callable[..., Any]
) -> None:
    trials = _all_diverged(records(("grid", "tpe"), (0, 1), (), 5), "tpe")
    text = Parsed(render(judge(comparison(methods=("grid", "tpe"), seeds=(0, 1), pilots=(), records=trials))))
    row = text.within("tr", data_method="tpe")
    assert "no finished trial with a finite loss for seed 0 and 1" in row
    assert "10 diverged" in row
    assert "not reached" in row
    assert "is left out" in text.within("section", id="verdict")


def test_a_law_whose_smaller_models_ate_the_budget_is_told_so(
    comparison: Callable[..., Comparison], records: Callable[..., Any]
) -> None:
    pilots = (4e5, 8e5, 1.1e6)
    trials = [r for r in records(("grid", "law"), (0, 1), pilots, 4) if r.method != "law"]
    outcome = judge(comparison(methods=("grid", "law"), seeds=(0, 1), pilots=pilots, runs=4, records=trials))
    assert outcome.law is not None
    assert outcome.law.pilot_cost > 3 * outcome.run_cost
    row = Parsed(render(outcome)).within("tr", data_method="law")
    assert f"the smaller models alone cost {words.runs(outcome.law.pilot_cost / outcome.run_cost)}" in row
    assert words.scientific(outcome.law.pilot_cost, 3) in row


def test_without_smaller_models_there_is_no_law_and_the_page_says_so(
    comparison: Callable[..., Comparison],
) -> None:
    text = Parsed(render(judge(comparison(methods=("grid", "metaoptimize"), pilots=()))))
    assert "No smaller models were run" in text.within("section", id="law")
    assert "Smaller models of" not in text.within("section", id="asked")
    assert text.within("section", id="cost").count("MetaOptimize")


def test_a_refused_law_is_told_with_its_reason(comparison: Callable[..., Comparison]) -> None:
    outcome = judge(comparison(methods=("grid", "metaoptimize"), pilots=(4e4, 1e5)))
    assert outcome.law is not None
    assert outcome.law.refusal
    text = Parsed(render(outcome))
    for section in ("law", "cost"):
        assert plain(words.sentence(outcome.law.refusal)) in plain(text.within("section", id=section))
    assert [a for _, a in text.elements if a.get("id") == "plot-law"]
    assert "predicted" not in text.within("section", id="law")


def test_smaller_models_that_all_failed_are_not_passed_over(
    comparison: Callable[..., Comparison], records: Callable[..., Any]
) -> None:
    trials = _all_diverged(records(("grid",), (0, 1), (4e4, 1e5, 2.5e5), 6), "pilot")
    text = Parsed(render(judge(comparison(methods=("grid",), seeds=(0, 1), records=trials))))
    law = text.within("section", id="law")
    assert "No law could be fitted" in law
    assert "No smaller model finished a trial" in law


def test_a_law_that_was_not_run_gives_an_expected_loss(comparison: Callable[..., Comparison]) -> None:
    text = Parsed(render(judge(comparison(methods=("grid", "metaoptimize")))))
    assert "expected, not run" in text.within("section", id="cost")


@pytest.mark.parametrize("name", available_methods())
def test_a_single_method_makes_a_page(comparison: Callable[..., Comparison], name: str) -> None:
    text = Parsed(render(judge(comparison(methods=(name,), seeds=(0, 1)))))
    assert [a["id"] for t, a in text.elements if t == "section"] == SECTIONS
    assert "nan" not in text.within("main").split()


def test_trials_without_curves_costs_and_seconds_make_a_page(
    comparison: Callable[..., Comparison], records: Callable[..., Any]
) -> None:
    trials = [
        dataclasses.replace(r, curve=None, seconds=math.nan)
        for r in records(("grid", "metaoptimize"), (0, 1), (4e4, 1e5, 2.5e5), 6)
    ]
    outcome = judge(comparison(methods=("grid", "metaoptimize"), seeds=(0, 1), records=trials))
    text = Parsed(render(dataclasses.replace(outcome, run_cost=math.nan)))
    assert "recorded no cost" in text.within("section", id="compute")
    assert "no trajectories to show" in text.within("section", id="trajectories")
    assert "recorded no cost" in text.within("section", id="cost")
    assert "nan" not in text.within("main").lower().split()


def test_every_end_is_listed_with_its_reason_however_long(
    comparison: Callable[..., Comparison], records: Callable[..., Any]
) -> None:
    trials = records(("grid",), (0, 1), (4e4, 1e5, 2.5e5), 6)
    reason = "x" * 3000
    trials[-1] = dataclasses.replace(trials[-1], state="failed", loss=math.nan, reason=reason, curve=None)
    trials[-2] = dataclasses.replace(trials[-2], state="pruned", reason="the law sees no gain")
    trials[-8] = dataclasses.replace(trials[-8], state="running", loss=math.nan, tokens=0.0, cost=math.nan)
    trials[-3] = dataclasses.replace(trials[-3], reason="made no progress: held-out loss 2.3 after 200 steps")
    text = Parsed(render(judge(comparison(methods=("grid",), seeds=(0, 1), records=trials))))
    shown = text.within("section", id="trials")
    assert reason in shown
    assert "made no progress: held-out loss 2.3" in shown
    assert "the law sees no gain" in shown
    assert "1 failed" in text.within("summary")
    assert "1 running" in text.within("summary")


def test_a_comparison_without_a_finished_trial_is_one_clear_error(
    comparison: Callable[..., Comparison], records: Callable[..., Any], tmp_path: Path
) -> None:
    only_pilots = records((), (0,), (4e4,), 4)
    with pytest.raises(OutcomeError, match="no method has a finished trial"):
        write_report(
            comparison(methods=("grid",), seeds=(0,), pilots=(4e4,), records=only_pilots), tmp_path / "r.html"
        )
    assert not list(tmp_path.iterdir())


def test_a_folder_becomes_a_report(comparison: Callable[..., Comparison], tmp_path: Path) -> None:
    held = comparison(methods=("grid", "metaoptimize"), seeds=(0, 1))
    saved = {"version": 1, "plan": held.plan.to_json(), "machine": held.machine, "command": held.command}
    (tmp_path / PLAN_FILE).write_text(json.dumps(saved), encoding="utf-8")
    held.table.write(tmp_path / TABLE_FILE)
    path = report_from_folder(tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8") == render(judge(Comparison.read(tmp_path)))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["report.html", PLAN_FILE, TABLE_FILE])


def test_folders_that_cannot_be_read_or_written_are_named(
    comparison: Callable[..., Comparison], tmp_path: Path
) -> None:
    with pytest.raises(CompareError, match="holds no finished comparison"):
        report_from_folder(tmp_path)
    held = comparison(methods=("grid",), seeds=(0,), pilots=())
    (tmp_path / "file").touch()
    with pytest.raises(ReportError, match="nowhere"):
        write_report(held, tmp_path / "file" / "nowhere.html")
