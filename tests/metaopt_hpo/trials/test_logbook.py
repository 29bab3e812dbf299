"""The book: the same events give the same book; cost never goes back; a cut-off journal is read."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.logbook_file import LogbookError, header
from metaopt_hpo.trials.logged_trial import STATES

reports = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.integers(1, 40),
        st.floats(0.1, 10),
        st.sampled_from(["p1", "p2", "p3"]),
        st.one_of(st.none(), st.floats(0, 1e12)),
    ),
    max_size=40,
)


def book_of(rows: list[Any]) -> tuple[Logbook, list[dict[str, Any]]]:
    book = Logbook()
    book.outbox = []
    for trial in ("a", "b"):
        book.add(trial, size=1e6, tokens=40.0, batch=2.0, lr=1e-2)
    for trial, tokens, loss, process, work in rows:
        book.report(trial, tokens, loss, process=process, work=work)
    return book, book.outbox


ends = st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["spare", *STATES])), max_size=6)


@given(reports, ends)
def test_replaying_the_events_gives_the_same_book(rows: list[Any], ended: list[Any]) -> None:
    book, events = book_of(rows)
    for trial, what in ended:
        if what == "spare":
            book.spare(trial)
        elif what == "running":
            book.add(trial)
        else:
            book.close(trial, what)
    again = Logbook.replay([header(), *(json.dumps(e) for e in events)])
    assert json.dumps(again.to_state()) == json.dumps(book.to_state())
    copy = Logbook()
    copy.load_state(json.loads(json.dumps(book.to_state())))
    assert json.dumps(copy.to_state()) == json.dumps(book.to_state())
    for other in (again, copy):
        assert other.sparing_now() == book.sparing_now()


@given(reports)
def test_telling_an_event_twice_changes_nothing_but_the_count(rows: list[Any]) -> None:
    book, events = book_of(rows)
    if events and events[-1]["k"] == "report":
        before = book.to_state()
        book.apply(dict(events[-1]))
        after = book.to_state()
        assert json.dumps({**after, "events": 0}) == json.dumps({**before, "events": 0})


@given(reports)
def test_cost_never_goes_back_and_curves_are_keyed_by_tokens(rows: list[Any]) -> None:
    book = Logbook()
    for trial in ("a", "b"):
        book.add(trial, size=1e6, tokens=40.0, batch=2.0, lr=1e-2)
    cost = {"a": 0.0, "b": 0.0}
    for trial, tokens, loss, process, work in rows:
        book.report(trial, tokens, loss, process=process, work=work)
        assert book.entries[trial].cost >= cost[trial]
        cost[trial] = book.entries[trial].cost
    for record in book.records():
        if record.curve is not None:
            seen = {t: x for k, t, x, *_ in rows if k == record.trial}
            assert dict(zip(record.curve.tokens, record.curve.loss, strict=True)) == seen


def test_a_retry_is_paid_for_once_more_from_where_it_went_on() -> None:
    book = Logbook()
    book.add("a", size=10.0, tokens=8.0, batch=1.0, lr=0.1)
    for tokens in (2, 4, 6):
        book.report("a", tokens, 1.0, process="first")
    for tokens in (6, 8):  # killed after 6, went on from the checkpoint at 4
        book.report("a", tokens, 1.0, process="second")
    assert book.entries["a"].cost == 6 * 10 * (6 + 4)
    told = Logbook()
    told.add("a", size=10.0, tokens=8.0, batch=1.0, lr=0.1)
    for process, tokens, work in (("1", 2, 20.0), ("1", 4, 40.0), ("2", 4, 20.0), ("2", 6, 40.0)):
        told.report("a", tokens, 1.0, process=process, work=work)
    assert told.entries["a"].cost == 80


def test_a_failure_is_mended_by_a_retry_and_nothing_else_is() -> None:
    book = Logbook()
    book.add("a", size=1.0, tokens=1.0, batch=1.0, lr=1.0)
    book.close("a", "failed", "killed")
    book.add("a")
    assert book.entries["a"].state == "running"
    book.close("a", "pruned", "the law says so")
    book.close("a", "complete")
    assert (book.entries["a"].state, book.entries["a"].reason) == ("pruned", "the law says so")


def test_damaged_lines_are_passed_over_and_counted_wherever_they_are() -> None:
    _, events = book_of([("a", 1, 1.0, "p", None), ("a", 2, 0.9, "p", None)])
    lines = [header(), *(json.dumps(e) for e in events)]
    whole = Logbook.replay(lines[:-1])
    cut = Logbook.replay([*lines[:-1], lines[-1][:20]])
    assert json.dumps(cut.to_state()) == json.dumps(whole.to_state())
    assert (whole.damaged, cut.damaged) == (0, 0), "a kill does that"
    for number in range(len(lines) - 1):
        damaged = [*lines[:number], "\ufffd" + lines[number][2:], *lines[number + 1 :]]
        book = Logbook.replay(damaged)
        assert book.damaged == 1
        assert {"a"} <= set(book.entries) <= {"a", "b"}


@pytest.mark.parametrize(
    "first", ["", "{}", '{"format": "something else", "version": 1}', "no json", '{"version": 1}']
)
def test_foreign_journals_are_refused(first: str) -> None:
    with pytest.raises(LogbookError):
        Logbook.replay([first])


def test_a_newer_journal_asks_for_an_upgrade() -> None:
    with pytest.raises(LogbookError, match="upgrade metaopt-hpo"):
        Logbook.replay([json.dumps({**json.loads(header()), "version": 99})])


def test_a_diverged_trial_has_no_loss() -> None:
    book = Logbook()
    book.add("a", size=1.0, tokens=4.0, batch=1.0, lr=1.0)
    book.report("a", 2, 3.0)
    book.close("a", "diverged", "the loss exploded")
    assert math.isnan(book.records()[0].loss)
