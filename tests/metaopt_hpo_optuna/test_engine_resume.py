"""A search that was interrupted or killed goes on as if it had not been."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_bowl import Bowl, evidence_for, task
from optuna.storages import InMemoryStorage

from metaopt_hpo.comparison.engine import SearchTask
from metaopt_hpo.comparison.methods import method
from metaopt_hpo.comparison.objective import Configuration, Report
from metaopt_hpo.comparison.training_objective import TrainObjective
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.workloads import members
from metaopt_hpo_optuna import OptunaEngine, search_study


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
