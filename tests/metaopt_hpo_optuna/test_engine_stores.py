"""Stores of studies: whose they are, and which an engine must refuse."""

from __future__ import annotations

import functools
import sqlite3
from pathlib import Path

import optuna
import pytest
from engine_bowl import Bowl, task

from metaopt_hpo.comparison.engine import EngineError
from metaopt_hpo.comparison.methods import method
from metaopt_hpo.comparison.objective import Configuration, Report, no_report
from metaopt_hpo.locks import InUse
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo_optuna import OptunaEngine, engine


def test_a_study_is_one_processs_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "only_process", functools.partial(engine.only_process, patience=0.0))
    store = str(tmp_path / "t.sqlite")

    class Nested(Bowl):
        def run(self, configuration: Configuration, report: Report = no_report) -> TrialRecord:
            with pytest.raises(InUse, match=r"study 's' in .* is in use by another process"):
                OptunaEngine().search(method("grid"), task(Bowl(), 2), store=store, study="s")
            return super().run(configuration, report)

    assert len(OptunaEngine().search(method("grid"), task(Nested(), 2), store=store, study="s")) == 2


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


def test_another_programs_trials_are_not_ours(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "foreign.sqlite") as connection:
        connection.execute("CREATE TABLE trials (patient INTEGER, arm TEXT)")
    connection.close()
    with pytest.raises(EngineError, match="another program"):
        OptunaEngine().search(method("grid"), task(Bowl()), store=str(tmp_path / "foreign.sqlite"), study="s")


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
