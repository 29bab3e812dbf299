"""OptunaEngine: equal FLOPs, exact resumption, honest accounting, and stores it must refuse."""

from __future__ import annotations

import functools
import math
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage

from metaopt_hpo.comparison.engine import EngineError, SearchTask, get_engine
from metaopt_hpo.comparison.methods import Method, method
from metaopt_hpo.comparison.objective import Configuration, ObjectiveUnavailable, Report, no_report
from metaopt_hpo.comparison.training_objective import TrainObjective
from metaopt_hpo.locks import InUse
from metaopt_hpo.trials.record import Curve, TrialRecord, token_grid
from metaopt_hpo.trials.record_json import record_to_json
from metaopt_hpo.workloads import members
from metaopt_hpo_optuna import OptunaEngine, engine, search_study, trial_table

SIZES = (2e3, 5e3, 1e4)
METHODS = sorted(OptunaEngine().methods)


class Bowl:
    """A loss that is a bowl in ln lr, whose optimum falls with size, with curves, divergence and interrupts."""

    name = "bowl"
    sizes = (*SIZES, 1e5)

    def __init__(
        self, interrupt: tuple[int, int] | None = None, error: Callable[[], BaseException] = KeyboardInterrupt
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
                raise self.error()
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
    assert repr(records) == repr(whole)
    assert len(rest.started) == len(records) - 2


@pytest.mark.parametrize("name", ["grid", "tpe", "cmaes", "metaoptimize", "asha", "hyperband", "median"])
def test_a_search_killed_at_any_write_ends_as_if_it_had_not_been(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends before or after each write to the store, one after the other."""
    whole = OptunaEngine().search(method(name), task(Bowl(), 5), study="s")
    storage = InMemoryStorage()
    monkeypatch.setattr(search_study, "open_store", lambda store: storage)
    left = [0]

    def deadly(write: Callable[..., Any]) -> Callable[..., Any]:
        def dying(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            found = write(*args, **options)
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return found

        return dying

    writes = [n for n in dir(storage) if n.startswith(("set_trial_", "create_new_trial"))]
    assert len(writes) > 4
    for write in writes:
        monkeypatch.setattr(storage, write, deadly(getattr(storage, write)))
    lives = 0
    for life in range(2000):
        left[0] = 1 + life % 23
        try:
            records = OptunaEngine().search(method(name), task(Bowl(), 5), study="s")
        except KeyboardInterrupt:
            lives += 1
            continue
        break
    assert lives > 10
    assert repr(records) == repr(whole)


@pytest.mark.parametrize("name", ["grid", "asha", "hyperband"])
def test_a_killed_process_leaves_a_trial_that_goes_on_from_its_checkpoint(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = members("regression", [8])
    fixed = {"size": float(job.size), "tokens": 2048.0, "batch": float(job.batch)}

    class Dying(TrainObjective):
        dies_at = 10**9
        steps = 0

        def run_saved(self, configuration: Configuration, report: Report, checkpoint: Path) -> TrialRecord:
            def counted(tokens: int, loss: float) -> str | None:
                Dying.steps += 1
                if Dying.steps == Dying.dies_at:
                    raise KeyboardInterrupt
                return report(tokens, loss)

            return super().run_saved(configuration, counted, checkpoint)

    def search(store: str) -> list[TrialRecord]:
        objective = Dying([job])
        budget = 4 * objective.cost(Configuration(**fixed, lr=1.0))
        one = SearchTask(objective=objective, budget=budget, lr_bounds=(1e-3, 3e-1), **fixed)
        return OptunaEngine().search(method(name), one, store=store, study="a/b?")

    storages: dict[str | None, InMemoryStorage] = {}
    monkeypatch.setattr(
        search_study, "open_store", lambda store: storages.setdefault(store, InMemoryStorage())
    )
    whole = search(str(tmp_path / "whole.sqlite"))
    Dying.dies_at = 3
    while True:
        Dying.steps = 0
        try:
            records = search(str(tmp_path / "t?.sqlite"))
        except KeyboardInterrupt:
            Dying.dies_at += 1
            continue
        break
    assert [timeless(r) for r in records] == [timeless(r) for r in whole]
    assert not list((tmp_path / "t?.sqlite.running").glob("*.pt"))


def timeless(record: TrialRecord) -> str:
    """A record without what a clock measured."""
    curve = record.curve
    return repr(
        replace(record, seconds=0.0, memory=0.0, curve=None if curve is None else replace(curve, seconds=()))
    )


def test_a_study_is_one_processs_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "only_process", functools.partial(engine.only_process, patience=0.0))
    store = str(tmp_path / "t.sqlite")

    class Nested(Bowl):
        def run(self, configuration: Configuration, report: Report = no_report) -> TrialRecord:
            with pytest.raises(InUse, match=r"study 's' in .* is in use by another process"):
                OptunaEngine().search(method("grid"), task(Bowl(), 2), store=store, study="s")
            return super().run(configuration, report)

    assert len(OptunaEngine().search(method("grid"), task(Nested(), 2), store=store, study="s")) == 2


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
    (tmp_path / "noise.journal").write_text('{"foreign": 1}\n')
    with pytest.raises(EngineError, match=r"noise\.journal cannot be used as a journal"):
        search(tmp_path / "noise.journal")


@pytest.mark.parametrize("made", range(13))
def test_a_database_that_another_process_is_making_is_ours(tmp_path: Path, made: int) -> None:
    """Two searches begin at once, or one was killed while it made its tables: each table is a commit of its own."""
    whole = tmp_path / "whole.sqlite"
    optuna.storages.RDBStorage(f"sqlite:///{whole}").engine.dispose()
    with sqlite3.connect(whole) as connection:
        tables = "SELECT sql FROM sqlite_master WHERE type = 'table' ORDER BY rowid"
        statements = [sql for (sql,) in connection.execute(tables)]
    connection.close()
    assert len(statements) == 13
    with sqlite3.connect(tmp_path / "part.sqlite") as connection:
        for statement in statements[:made]:
            connection.execute(statement)
    connection.close()
    store = str(tmp_path / "part.sqlite")
    assert len(OptunaEngine().search(method("grid"), task(Bowl(), 2), store=store, study="s")) == 2


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


def test_another_programs_trials_are_not_ours(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "foreign.sqlite") as connection:
        connection.execute("CREATE TABLE trials (patient INTEGER, arm TEXT)")
    connection.close()
    with pytest.raises(EngineError, match="another program"):
        OptunaEngine().search(method("grid"), task(Bowl()), store=str(tmp_path / "foreign.sqlite"), study="s")


def test_what_a_killed_write_left_is_taken_back(tmp_path: Path) -> None:
    """SQLite's hot journal, and half a line of Optuna's Journal."""
    store = tmp_path / "trials.sqlite"
    whole = OptunaEngine().search(method("grid"), task(Bowl(), 2), store=str(store), study="s")
    kill = (
        "import sqlite3, os, signal, sys\n"
        "c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA cache_size=1'); c.execute('BEGIN IMMEDIATE')\n"
        "c.execute('delete from trials'); c.execute('create table z(a)')\n"
        "c.executemany('insert into z values(?)', [('x' * 3000,)] * 200)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", kill, str(store)], check=False)
    assert (tmp_path / "trials.sqlite-journal").stat().st_size > 0
    again = OptunaEngine().search(method("grid"), task(Bowl(), 2), store=str(store), study="s")
    assert repr(again) == repr(whole)
    journal = tmp_path / "trials.journal"
    whole = OptunaEngine().search(method("grid"), task(Bowl(), 2), store=str(journal), study="s")
    with journal.open("a") as file:
        file.write('{"op_code":8,"wor')
    for _ in range(2):
        again = OptunaEngine().search(method("grid"), task(Bowl(), 2), store=str(journal), study="s")
        assert repr(again) == repr(whole)


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%41b", "a{b}", "a b'\"é"])
@pytest.mark.parametrize("suffix", ["sqlite", "journal"])
def test_a_store_is_the_file_that_was_named(name: str, suffix: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    store = folder / f"{name}.{suffix}"
    for _ in range(2):
        OptunaEngine().search(method("grid"), task(Bowl(), 2), store=str(store), study="s")
    assert store.stat().st_size > 0
    assert [p.name for p in tmp_path.iterdir()] == [name]


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
