"""OptunaEngine: equal FLOPs, honest accounting, and what belongs to no trial."""

from __future__ import annotations

import math
from pathlib import Path

import optuna
import pytest
from engine_bowl import Bowl, evidence_for, task

from metaopt_hpo.comparison.engine import EngineError, get_engine
from metaopt_hpo.comparison.methods import Method, method
from metaopt_hpo.comparison.objective import ObjectiveUnavailable
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.record_json import record_to_json
from metaopt_hpo_optuna import OptunaEngine, trial_table

METHODS = sorted(OptunaEngine().methods)


@pytest.mark.parametrize("name", METHODS)
def test_spends_the_budget_and_no_more(name: str, pilots: list[TrialRecord]) -> None:
    job = task(Bowl(), **evidence_for(name, pilots))
    records = OptunaEngine().search(method(name), job, study="s")
    spent = math.fsum(r.cost for r in [*records, *job.evidence])
    assert spent <= job.budget * (1 + 1e-9)
    assert spent + 6e10 > job.budget * (1 - 1e-9) or name == "grid"
    assert {r.method for r in records} == {name}
    assert {r.engine for r in records} == {"optuna"}
    assert all(job.lr_bounds[0] <= r.lr <= job.lr_bounds[1] or name == "metaoptimize" for r in records)
    assert len({r.trial for r in records}) == len(records)


def test_an_error_of_the_machine_is_no_trials(tmp_path: Path) -> None:
    store = str(tmp_path / "trials.sqlite")
    with pytest.raises(OSError, match="disk"):
        OptunaEngine().search(
            method("grid"), task(Bowl((2, 5), lambda: OSError(28, "disk")), 4), store=store, study="s"
        )
    records = OptunaEngine().search(method("grid"), task(Bowl(), 4), store=store, study="s")
    assert repr(records) == repr(OptunaEngine().search(method("grid"), task(Bowl(), 4), study="s"))


def test_the_table_is_rebuilt_from_the_study_alone(tmp_path: Path) -> None:
    store = str(tmp_path / "trials.sqlite")
    records = OptunaEngine().search(method("tpe"), task(Bowl(), 5), store=store, study="s")
    table = trial_table(optuna.load_study(study_name="s", storage=f"sqlite:///{store}"))
    assert repr(table.records()) == repr(records)
    assert "diverged" in {r.state for r in records}


def test_diverged_trials_end_pruned_with_a_finite_penalty_worse_than_all_others(tmp_path: Path) -> None:
    store = str(tmp_path / "trials.sqlite")
    OptunaEngine().search(method("grid"), task(Bowl(), 5), store=store, study="s")
    trials = optuna.load_study(study_name="s", storage=f"sqlite:///{store}").trials
    diverged = [t for t in trials if t.user_attrs["metaopt:record"]["state"] == "diverged"]
    others = [t.value for t in trials if t not in diverged]
    assert diverged
    for trial in diverged:
        assert trial.state == optuna.trial.TrialState.PRUNED
        assert trial.value is not None
        assert math.isfinite(trial.value)
        assert trial.value > max(others)
        assert trial.user_attrs["metaopt:reason"] == "held-out loss is nan"


def test_an_error_in_the_objective_is_raised_and_its_cost_kept(tmp_path: Path) -> None:
    store = str(tmp_path / "trials.sqlite")
    with pytest.raises(ZeroDivisionError):
        OptunaEngine().search(method("random"), task(Bowl((2, 5), ZeroDivisionError)), store=store, study="s")
    table = trial_table(optuna.load_study(study_name="s", storage=f"sqlite:///{store}"))
    assert [r.state for r in table.records()][-1] == "failed"
    assert "ZeroDivisionError" in table.records()[-1].reason
    assert table.records()[-1].cost > 0


def test_seeds_differ_and_repeat() -> None:
    def lrs(seed: int) -> list[float]:
        return [r.lr for r in OptunaEngine().search(method("tpe"), task(Bowl(), 6, seed=seed), study="s")]

    assert lrs(1) == lrs(1) != lrs(2)


def test_data_that_go_away_cost_the_method_nothing(tmp_path: Path) -> None:
    """They are back when the search is started again, which then ends as an undisturbed one."""

    gone = Bowl(interrupt=(3, 2), error=lambda: ObjectiveUnavailable("no data folder"))
    whole = OptunaEngine().search(
        method("grid"), task(Bowl(), 4), store=str(tmp_path / "a.sqlite"), study="s"
    )
    store = str(tmp_path / "b.sqlite")
    with pytest.raises(ObjectiveUnavailable):
        OptunaEngine().search(method("grid"), task(gone, 4), store=store, study="s")
    again = OptunaEngine().search(method("grid"), task(Bowl(), 4), store=store, study="s")
    assert [record_to_json(r) for r in again] == [record_to_json(r) for r in whole]


def test_unknown_method_and_missing_evidence() -> None:
    with pytest.raises(EngineError, match="has no method 'annealing'"):
        OptunaEngine().search(Method("annealing", "Annealing", "external"), task(Bowl()), study="s")
    with pytest.raises(EngineError, match="needs trials of smaller models"):
        OptunaEngine().search(method("law"), task(Bowl()), study="s")


def test_found_by_entry_point_and_law_finds_the_optimum(pilots: list[TrialRecord]) -> None:
    records = get_engine("optuna").search(method("law"), task(Bowl(), 3, evidence=tuple(pilots)), study="s")
    # seven points a cell pin the optimum to about a third
    assert records[0].lr == pytest.approx(0.05 * 10**-0.3, rel=0.4)


def test_a_method_whose_package_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from metaopt_hpo_optuna import proposers

    monkeypatch.setattr(proposers, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"metaopt-hpo\[baselines\]"):
        proposers.SAMPLERS["cmaes"](0, 3)
