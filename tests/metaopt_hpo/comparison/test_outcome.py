"""The outcome: costs counted rightly, pairing by seed, a verdict that says what the table says."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from metaopt_hpo.comparison import protocol
from metaopt_hpo.comparison.claims import claim, runs
from metaopt_hpo.comparison.outcome import MATCH, OutcomeError, judge, percent
from metaopt_hpo.comparison.protocol import compare
from metaopt_hpo.comparison.results import Comparison
from metaopt_hpo.comparison.statistics import Difference
from metaopt_hpo.trials.schema import TableWarning
from metaopt_hpo.trials.table import TrialTable
from studies.gain.reached import budget_table, searches
from studies.gain.summary import summary

sys.path.insert(0, str(Path(__file__).parent))
from test_protocol import PLAN
from toy import DictEngine, Parabola


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Comparison:
    monkeypatch.setattr(protocol, "get_engine", lambda name: DictEngine())
    return compare(Parabola(), PLAN, tmp_path / "out", workers=1)


def test_reference_law_and_costs(result: Comparison) -> None:
    outcome = judge(result)
    assert outcome.reference.name == "grid"
    assert outcome.run_cost == 6e12
    by_name = {m.name: m for m in outcome.methods}
    assert by_name["grid"].total_cost == pytest.approx(5 * 6e12)
    assert by_name["metaoptimize"].match_cost == pytest.approx(6e12)
    law = by_name["law"].trajectories[0]
    assert law.pilot_cost == pytest.approx(5 * 6e6 * (1e3 + 1e4 + 1e5))
    assert law.cost[0] == pytest.approx(law.pilot_cost + 6e12)
    assert outcome.law is not None
    assert outcome.law.prediction is not None
    assert outcome.law.prediction.lr.value == pytest.approx(Parabola().best_lr(1e6), rel=0.2)


def test_differences_are_paired_log_ratios(result: Comparison) -> None:
    mo = next(m for m in judge(result).methods if m.name == "metaoptimize")
    frame = result.table.frame
    expected = [
        math.log(
            frame.query("method == 'metaoptimize' and seed == @s")["loss"].iloc[0]
            / frame.query("method == 'grid' and seed == @s")["loss"].min()
        )
        for s in PLAN.seeds
    ]
    assert mo.first_versus_reference is not None
    assert mo.first_versus_reference.mean == pytest.approx(sum(expected) / 3)
    assert mo.first_versus_reference.pairs == 3


def test_verdict_names_the_share_of_compute(result: Comparison) -> None:
    verdict = judge(result).verdict
    assert "One MetaOptimize run" in verdict
    assert "at a fifth of the compute." in verdict
    assert "the best of five grid runs (90 % interval" in verdict


def test_pruned_and_diverged_losses_never_count_as_results(result: Comparison) -> None:
    records = [
        replace(r, loss=0.1, state="pruned") if r.method == "grid" and r.trial == "0" else r
        for r in result.table.records()
    ]
    changed = replace(result, table=TrialTable.from_records(records))
    assert min(next(m for m in judge(changed).methods if m.name == "grid").best) > 1


def test_a_method_without_any_result_is_left_out_and_said(result: Comparison) -> None:
    records = [
        replace(r, state="failed") if r.method == "metaoptimize" else r for r in result.table.records()
    ]
    outcome = judge(replace(result, table=TrialTable.from_records(records)))
    assert [m.name for m in outcome.methods] == ["grid", "law"]
    assert "MetaOptimize finished no trial" in outcome.verdict
    nothing = [replace(r, state="failed") for r in result.table.records()]
    with pytest.raises(OutcomeError, match="no method has a finished trial"):
        judge(replace(result, table=TrialTable.from_records(nothing)))


def test_match_is_relative_to_each_seeds_own_reference(result: Comparison) -> None:
    outcome = judge(result)
    for m in outcome.methods:
        for t, r in zip(m.trajectories, outcome.reference.trajectories, strict=True):
            reached = t.cost_to(r.best[-1] * (1 + MATCH))
            assert reached in (*t.cost, math.inf)


def test_costs_that_were_not_measured_count_six_flops_a_parameter_and_token(result: Comparison) -> None:
    records = [replace(r, cost=math.nan) for r in result.table.records()]
    assert judge(replace(result, table=TrialTable.from_records(records))).run_cost == pytest.approx(6e12)


def test_a_law_whose_pilots_used_the_budget_is_said_to_have(result: Comparison) -> None:
    records = [r for r in result.table.records() if r.method != "law"]
    verdict = judge(replace(result, table=TrialTable.from_records(records))).verdict
    assert "had no budget left after its pilots" in verdict


def test_negative_losses_are_refused_in_a_sentence(result: Comparison) -> None:
    records = [replace(r, loss=r.loss - 5) for r in result.table.records()]
    with pytest.warns(TableWarning, match="not positive"):
        table = TrialTable.from_records(records)
    with pytest.raises(OutcomeError, match="zero or negative"):
        judge(replace(result, table=table))


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        (Difference(0.0421, -0.002, 0.08, 0.1, 3), "+4.3 % (90 % interval −0.20 to +8.3 %, 3 seeds)"),
        (Difference(-1e-7, -1e-7, 1e-7, 0.1, 3), "+0.00 % (90 % interval +0.00 to +0.00 %, 3 seeds)"),
        (Difference(0.001, -math.inf, math.inf, math.nan, 1), "+0.10 % (one seed, no interval)"),
    ],
)
def test_percent_is_signed_rounded_and_never_minus_zero(difference: Difference, text: str) -> None:
    assert percent(difference) == text


@pytest.mark.parametrize(
    ("difference", "share", "headline"),
    [
        (Difference(-0.006, -0.017, 0.0056, 0.4, 3), 0.2, "Tie at a fifth of the compute."),
        (Difference(-0.006, -0.017, -0.001, 0.02, 3), 0.5, "Lower loss at half of the compute."),
        (Difference(0.02, 0.01, 0.03, 0.02, 3), 1.02, "Higher loss at the same compute."),
        (Difference(0.02, -0.05, 0.09, 0.5, 3), 0.18, "Undecided at 18 % of the compute."),
        (
            Difference(0.02, -math.inf, math.inf, math.nan, 1),
            2.5,
            "Undecided on one seed, at 2.5 times the compute.",
        ),
    ],
)
def test_the_headline_decides_only_where_the_interval_does(
    difference: Difference, share: float, headline: str
) -> None:
    found = claim("One MetaOptimize run", "the best of five grid runs", difference, share)
    assert found.headline == headline
    assert str(found).startswith(f"{headline} One MetaOptimize run ended ")


def test_a_difference_is_told_as_a_person_would() -> None:
    found = claim(
        "One run", f"the best of {runs(5, 'Grid search')}", Difference(-0.006, -0.0171, 0.0056, 0.4, 3), 0.2
    )
    assert found.text == (
        "One run ended 0.60 % below the best of five grid runs (90 % interval −1.7 to +0.56 %, 3 seeds)."
    )


def test_a_comparison_is_a_race_in_target_runs(result: Comparison) -> None:
    outcome = judge(result)
    frame = searches(outcome)
    best = {s: frame.query("seed == @s")["excess"].min() for s in PLAN.seeds}
    assert best == dict.fromkeys(PLAN.seeds, 0.0)
    found = summary(frame, float(PLAN.runs)).query("within == 0.01").set_index("method")
    # a run of MetaOptimize is within 1 % at once; the law pays for its pilots first
    assert found.loc["metaoptimize", "median"] == 1.0
    pilots = 5 * (1e3 + 1e4 + 1e5) / 1e6
    assert found.loc["law", "median"] == pytest.approx(1 + pilots)
    # costs are those of all runs up to the first good enough one
    grid = frame.query("method == 'grid' and seed == 0")
    assert grid["excess"].is_monotonic_decreasing
    assert grid["cost"].iloc[-1] == pytest.approx(PLAN.runs)


def test_where_each_method_ended_is_held_against_the_reference(result: Comparison) -> None:
    table = budget_table(judge(result)).splitlines()
    (grid,) = [line for line in table if line.startswith("| Grid search")]
    (mo,) = [line for line in table if line.startswith("| MetaOptimize")]
    assert grid.split("|")[3].strip() == "–"
    assert "90 % interval" in mo.split("|")[3]
    assert "90 % interval" in mo.split("|")[4]


@pytest.mark.parametrize(
    ("kept", "page"),
    [("live_race_ray", "studies/gain/ray.md"), ("live_race_optuna", "studies/gain/README.md")],
)
def test_the_live_races_of_the_docs_are_the_kept_ones(kept: str, page: str) -> None:
    docs = Path(__file__).parents[3] / "docs"
    outcome = judge(Comparison.read(docs / "studies" / "gain" / kept))
    assert budget_table(outcome) in (docs / page).read_text(encoding="utf-8")
