"""Results of any framework's trials, read into a logbook and kept in a journal: no framework is needed."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest

from metaopt_hpo.trials.journal import Journal
from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.logged_results import CUT, NOT_LAUNCHED, Results, cut_off, outcome, result_of
from metaopt_hpo.trials.record import REACHED_BY_REPORT, TrialRecord

PLANNED = 1e6


def book_of(*trials: str) -> Logbook:
    book = Logbook()
    for trial in trials:
        book.add(trial, size=1e4, tokens=PLANNED, batch=256, lr=0.01)
        book.launch(trial)
    return book


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_a_result_is_one_point_of_the_trials_curve(nested: bool, maximize: bool) -> None:
    results = Results("val/loss" if nested else "loss", maximize=maximize)
    book = book_of("t")
    told: dict[str, Any] = {"val": {"loss": 3.0}} if nested else {"loss": 3.0}
    results.enter(book, "t", {**told, "tokens_seen": 5e5})
    (record,) = book.records(maximize=maximize)
    assert (record.tokens, record.loss) == (5e5, -3.0 if maximize else 3.0)
    assert record.cost == 6 * 1e4 * 5e5


def test_a_run_of_ours_says_the_rest_of_its_record() -> None:
    said = TrialRecord(size=1e4, tokens=5e5, batch=256, lr=0.01, loss=3.0, strategy="wsd", found_lr=0.02)
    book = book_of("t")
    Results().enter(
        book, "t", {"loss": 3.0, "tokens_seen": 5e5, "process": "p", "flops_here": 7.0, **result_of(said)}
    )
    (record,) = book.records()
    assert (record.strategy, record.found_lr, record.cost) == ("wsd", 0.02, 7.0)


@pytest.mark.parametrize(
    ("result", "part", "as_meant", "ended_by", "state"),
    [
        ({}, 1.0, False, "", "complete"),
        ({}, REACHED_BY_REPORT, False, "", "complete"),
        ({}, 0.9, False, "", "stopped"),
        ({}, 0.9, True, "", "complete"),
        ({}, 0.9, False, "a scheduler", "pruned"),
        ({"run_state": "stopped"}, 0.9, False, "a scheduler", "stopped"),
        ({"run_state": "diverged"}, 0.9, True, "a scheduler", "diverged"),
        ({"loss": math.nan}, 1.0, True, "", "diverged"),
    ],
)
def test_how_a_trial_has_ended_follows_from_its_last_result(
    result: dict[str, Any], part: float, as_meant: bool, ended_by: str, state: str
) -> None:
    results, book = Results(), book_of("t")
    last = {"loss": 3.0, "tokens_seen": part * PLANNED, **result}
    results.enter(book, "t", last)
    results.close(book, "t", last, as_meant=as_meant, ended_by=ended_by)
    assert book.entries["t"].state == state


def test_a_trial_that_counts_no_tokens_has_seen_what_was_planned() -> None:
    book = book_of("t")
    Results().close(book, "t", {"loss": 3.0})
    assert (book.entries["t"].state, book.entries["t"].last) == ("complete", (PLANNED, 3.0))


def test_what_an_experiments_end_cuts_off_is_closed_as_it_stands() -> None:
    book = book_of("done", "half", "diverged")
    book.add("waits", size=1e4, tokens=PLANNED, batch=256, lr=0.01)
    for trial, tokens, loss in (("done", PLANNED, 3.0), ("half", 5e5, 3.0), ("diverged", 5e5, math.nan)):
        Results().enter(book, trial, {"loss": loss, "tokens_seen": tokens})
    cut_off(book)
    assert {t: e.state for t, e in book.entries.items()} == {
        "done": "complete",
        "half": "stopped",
        "diverged": "diverged",
        "waits": "pruned",
    }
    assert (book.entries["half"].reason, book.entries["waits"].reason) == (CUT, NOT_LAUNCHED)
    assert outcome(book.entries["half"], {})[0] == "stopped"


def test_a_journal_brings_its_book_back_after_a_kill_and_moves_anothers_aside(tmp_path: Path) -> None:
    first = Journal(book_of("t"))
    first.open(tmp_path)
    Results().enter(first.book, "t", {"loss": 3.0, "tokens_seen": 5e5})
    first.flush()
    again = copy.deepcopy(Journal(Logbook()))  # as a pickle, without open files
    again.load_state(first.state())
    again.open(tmp_path)
    assert again.resumed
    assert again.book.to_state() == first.book.to_state()
    other = Journal(Logbook())
    other.open(tmp_path, ["u"])
    assert not other.book.entries
    assert len(list(tmp_path.glob("metaopt-trials.old-*"))) == 1


def test_a_restored_experiment_without_a_journal_is_rebuilt_from_what_else_there_is(tmp_path: Path) -> None:
    journal = Journal(Logbook())
    journal.restored = True
    journal.open(tmp_path, rebuild=lambda: book_of("t"))
    assert journal.resumed
    assert list(journal.book.entries) == ["t"]
