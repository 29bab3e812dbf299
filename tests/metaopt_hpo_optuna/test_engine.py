"""OptunaEngine: equal FLOPs, exact resumption, honest accounting, and stores it must refuse."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path

import optuna
import pytest

from metaopt_hpo.comparison.engine import EngineError, SearchTask, get_engine
from metaopt_hpo.comparison.methods import Method, method
from metaopt_hpo.comparison.objective import Configuration
from metaopt_hpo.trials.record import Curve, TrialRecord, token_grid
from metaopt_hpo_optuna import OptunaEngine, trial_table

SIZES = (2e3, 5e3, 1e4)
METHODS = sorted(OptunaEngine().methods)


class Bowl:
    """A loss that is a bowl in ln lr, whose optimum falls with size, with curves, divergence and interrupts."""

    name = "bowl"
    sizes = (*SIZES, 1e5)

    def __init__(
        self, interrupt: tuple[int, int] | None = None, error: type[BaseException] = KeyboardInterrupt
    ):
        self.started: list[Configuration] = []
        self.interrupt = interrupt
        self.error = error

    def cost(self, configuration: Configuration) -> float:
        return 6.0 * configuration.size * configuration.tokens

    def run(self, configuration: Configuration, report=lambda tokens, loss: None) -> TrialRecord:
        self.started.append(configuration)
        c = configuration
        x = math.log(c.lr / (0.05 * (c.size / 1e4) ** -0.3))
        points: list[tuple[float, float]] = []
        state, reason = "complete", ""
        for t in token_grid(c.tokens, start=c.batch, stride=4):
            if x > 2.5 and t > c.batch * 3:
                state, reason = "diverged", "held-out loss is nan"
                break
            points.append((float(t), 1 + 50 * t**-0.5 + 0.1 * x * x))
            if self.interrupt == (len(self.started), len(points)):
                raise self.error
            stop = report(t, points[-1][1])
            if stop:
                state, reason = "pruned", stop
                break
        seen = c.tokens if state == "complete" else points[-1][0]
        return TrialRecord(
            size=c.size, tokens=seen, batch=c.batch, lr=c.lr, strategy=c.strategy, seed=c.seed,
            loss=math.nan if state == "diverged" else points[-1][1], state=state, reason=reason,
            cost=6.0 * c.size * seen, target_tokens=c.tokens, initial_loss=5.0,
            curve=Curve(tuple(t for t, _ in points), tuple(v for _, v in points)),
        )  # fmt: skip


@pytest.fixture(scope="module")
def pilots() -> list[TrialRecord]:
    engine, found = OptunaEngine(), []
    for size in SIZES:
        pilot = SearchTask(
            objective=Bowl(), size=size, tokens=1e5, batch=512.0, lr_bounds=(1e-3, 1.0), budget=6e5 * size * 7
        )
        found += engine.search(method("grid"), pilot, study=f"pilot/{size:g}")
    return found


def task(objective: Bowl, runs: float = 6, **changes: object) -> SearchTask:
    settings: dict[str, object] = {
        "size": 1e5, "tokens": 1e5, "batch": 512.0, "lr_bounds": (1e-3, 1.0), "budget": 6e10 * runs, "seed": 3,
    }  # fmt: skip
    return SearchTask(objective=objective, **{**settings, **changes})


def evidence_for(name: str, pilots: list[TrialRecord]) -> dict[str, object]:
    return {"evidence": tuple(pilots)} if name == "law" else {}


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


@pytest.mark.parametrize("name", ["grid", "tpe", "metaoptimize", "law", "asha"])
@pytest.mark.parametrize("file", ["trials.sqlite", "trials.journal"])
def test_a_finished_search_is_read_not_run_again(
    name: str, file: str, pilots: list[TrialRecord], tmp_path: Path
) -> None:
    first, again = Bowl(), Bowl()
    options = evidence_for(name, pilots)
    store = str(tmp_path / file)
    seen: list[TrialRecord] = []
    records = OptunaEngine().search(method(name), task(first, 4, **options), store=store, study="s")
    resumed = OptunaEngine().search(
        method(name), task(again, 4, **options), store=store, study="s", progress=seen.append
    )
    assert not again.started
    assert repr(resumed) == repr(records) == repr(seen)


@pytest.mark.parametrize("name", ["grid", "random", "tpe", "metaoptimize", "law"])
def test_an_interrupted_search_goes_on_as_if_it_had_not_been(
    name: str, pilots: list[TrialRecord], tmp_path: Path
) -> None:
    options = evidence_for(name, pilots)
    whole = OptunaEngine().search(method(name), task(Bowl(), 6, **options), study="s")
    store = str(tmp_path / "trials.sqlite")
    with pytest.raises(KeyboardInterrupt):
        OptunaEngine().search(method(name), task(Bowl((3, 2)), 6, **options), store=store, study="s")
    rest = Bowl()
    records = OptunaEngine().search(method(name), task(rest, 6, **options), store=store, study="s")
    failed = [r for r in records if r.state == "failed"]
    finished = [r for r in records if r.state != "failed"]
    assert len(failed) == 1
    assert 0 < failed[0].cost < 6e10
    assert "KeyboardInterrupt" in failed[0].reason
    # what the interrupted trial spent is missing at the end: a prefix, in which nothing was run twice
    assert [r.lr for r in finished[:3]] == pytest.approx([r.lr for r in whole[:3]])
    assert len(rest.started) == len(records) - 3
    assert math.fsum(r.cost for r in records) <= 6 * 6e10 * (1 + 1e-9)


def test_a_killed_process_leaves_a_running_trial_that_is_closed_with_its_cost(tmp_path: Path) -> None:
    store = str(tmp_path / "trials.sqlite")
    OptunaEngine().search(method("grid"), task(Bowl(), 2), store=store, study="s")
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{store}")
    done = study.trials[0]
    trial = study.ask()  # what SIGKILL leaves: begun, reported once, never told
    for key in ("metaopt:configuration", "metaopt:flops_per_token"):
        trial.set_user_attr(key, done.user_attrs[key])
    trial.report(3.0, step=4096)
    records = OptunaEngine().search(method("grid"), task(Bowl(), 2), store=store, study="s")
    assert [r.state == "failed" for r in records] == [False, False, True]
    assert records[-1].cost == pytest.approx(6 * 1e5 * 4096)
    assert study.trials[-1].state == optuna.trial.TrialState.FAIL


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


def test_another_task_may_not_resume(tmp_path: Path) -> None:
    store = str(tmp_path / "trials.sqlite")
    OptunaEngine().search(method("grid"), task(Bowl(), 2), store=store, study="s")
    with pytest.raises(EngineError, match="other seed"):
        OptunaEngine().search(method("grid"), task(Bowl(), 2, seed=4), store=store, study="s")
    with pytest.raises(EngineError, match="other method"):
        OptunaEngine().search(method("random"), task(Bowl(), 2), store=store, study="s")


def test_somebody_elses_study_is_refused(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="s", storage=f"sqlite:///{tmp_path / 't.sqlite'}")
    study.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(EngineError, match="not made by a comparison"):
        OptunaEngine().search(method("grid"), task(Bowl()), store=str(tmp_path / "t.sqlite"), study="s")


def test_bad_stores_are_named(tmp_path: Path) -> None:
    def search(store: Path) -> None:
        OptunaEngine().search(method("grid"), task(Bowl()), store=str(store), study="s")

    (tmp_path / "noise.sqlite").write_bytes(b"not a database at all, only some bytes" * 100)
    with pytest.raises(EngineError, match=r"noise\.sqlite is not a readable SQLite database"):
        search(tmp_path / "noise.sqlite")
    with sqlite3.connect(tmp_path / "foreign.sqlite") as connection:
        connection.execute("CREATE TABLE customers (id INTEGER)")
    connection.close()
    with pytest.raises(EngineError, match="another program"):
        search(tmp_path / "foreign.sqlite")
    with sqlite3.connect(tmp_path / "foreign.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (1,)
    connection.close()
    with pytest.raises(EngineError, match="no folder"):
        search(tmp_path / "missing" / "trials.sqlite")
    with pytest.raises(EngineError, match="cannot open the store"):
        OptunaEngine().search(method("grid"), task(Bowl()), store="nosuchdb://host/x", study="s")


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
