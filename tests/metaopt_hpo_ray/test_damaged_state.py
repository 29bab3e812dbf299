"""Saved states of searcher, scheduler and keeper with a place damaged: one sentence, or a search that goes on."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stub_cluster import StubCluster, stub_trial, world_curve, world_loss

from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.logbook_file import LogbookError, header
from metaopt_hpo_ray import ScalingLawScheduler, ScalingLawSearch
from metaopt_hpo_ray.journal_callback import JournalCallback

JUNK: tuple[Any, ...] = (
    None, True, -1, 1e308, 10**400, float("nan"), float("inf"), "x", "", [], {}, [None], {"a": 1}, "1e3",
)  # fmt: skip


def searcher() -> ScalingLawSearch:
    out = ScalingLawSearch(
        candidates=[(1e6, 2e7), (2e6, 4e7), (4e6, 8e7)], target=(1.6e7, 3.2e8), lr=(1e-4, 1e-1), batch=10000
    )
    out.set_search_properties("loss", "min", {"strategy": "wsd"})
    return out


def ask(s: ScalingLawSearch, first: int, count: int) -> None:
    for i in range(first, first + count):
        config = s.suggest(f"t{i}")
        result = {"loss": world_loss(config["size"], config["tokens"], config["lr"])}
        result["tokens_seen"] = config["tokens"]
        s.on_trial_result(f"t{i}", result)
        s.on_trial_complete(f"t{i}", result)


def scheduler() -> ScalingLawScheduler:
    out = ScalingLawScheduler(background=False)
    JournalCallback(out)
    assert out.set_search_properties("loss", "min")
    return out


def cluster(s: ScalingLawScheduler, first: int, count: int) -> StubCluster:
    def curve(trial: Any) -> Any:
        return world_curve(trial.config["size"], trial.config["tokens"], trial.config["lr"])

    out = StubCluster(s, curve, slots=4)
    for i in range(first, first + count):
        facts = {"size": 1e6 * 2 ** (i % 4), "tokens": 2e7, "batch": 1e4, "lr": 1e-4 * 3 ** (i % 6)}
        out.add(stub_trial(f"t{i:05d}", **facts))
    return out


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inside:
        yield (*at, key)
        yield from places(child, (*at, key))


def damaged(text: str, draw: random.Random) -> bytes:
    """Junk in a place of the JSON, a flipped bit, or an end that is missing."""
    how = draw.random()
    if how < 0.2:
        return text[: draw.randrange(len(text))].encode()
    if how < 0.4:
        flipped = bytearray(text.encode())
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        return bytes(flipped)
    state = json.loads(text)
    where = draw.choice(list(places(state)))
    inner = state
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = draw.choice(JUNK)
    return json.dumps(state).encode()


def state_of_searcher(path: Path) -> None:
    s = searcher()
    ask(s, 0, 4)
    s.suggest("t4")
    s.save(str(path))


def state_of_scheduler(path: Path) -> None:
    s = scheduler()
    cluster(s, 0, 8).run()
    s.save(str(path))
    # each entry is text in the text: opened, so that junk comes into it too
    state = json.loads(path.read_text())
    state["book"]["entries"] = [json.loads(e) for e in state["book"]["entries"]]
    path.write_text(json.dumps(state))


def go_on_searching(s: ScalingLawSearch) -> None:
    ask(s, 100, 2)
    s.book.records()


def go_on_scheduling(s: ScalingLawScheduler) -> None:
    cluster(s, 100, 4).run()
    s.book.records()


def refusal(taker: Any, file: Path) -> str | None:
    try:
        taker.restore(str(file))
    except LogbookError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("make", "keep", "go_on", "count"),
    [
        (searcher, state_of_searcher, go_on_searching, 60),
        (scheduler, state_of_scheduler, go_on_scheduling, 120),
    ],
    ids=["searcher", "scheduler"],
)
def test_a_damaged_state_is_one_sentence_or_goes_on(
    make: Callable[[], Any],
    keep: Callable[[Path], None],
    go_on: Callable[[Any], None],
    count: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "state"
    keep(file)
    text, draw, refused = file.read_text(), random.Random(0), 0
    for _ in range(count):
        content = damaged(text, draw)
        file.write_bytes(content)
        taker = make()
        caplog.clear()
        error = refusal(taker, file)
        if error is None:
            go_on(taker)
        else:
            refused += 1
            assert "\n" not in error
            assert str(file) in error
            assert "begin without it" in error
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR], content
    assert refused > count / 4


@pytest.mark.parametrize("make", [searcher, scheduler])
def test_a_missing_a_deep_and_a_binary_state_are_one_sentence(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    (tmp_path / "deep").write_text("[" * 100_000)
    (tmp_path / "binary").write_bytes(b"\x80\x04\xff")
    (tmp_path / "list").write_text("[1]")
    for name in ("missing", "deep", "binary", "list"):
        with pytest.raises(LogbookError, match=name) as raised:
            make().restore(str(tmp_path / name))
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("state", [None, [], {}, {"owner": 3}, {"owner": {"book": None}}, {"scheduler": "x"}])
def test_the_keeper_never_raises_into_a_restore(state: Any) -> None:
    JournalCallback(scheduler()).set_state(state)
    JournalCallback().set_state(state)


def test_an_event_of_other_types_is_passed_over() -> None:
    add = {"k": "add", "id": "a", "size": 1e6, "tokens": 40.0, "batch": 2.0, "lr": 1e-2}
    told = {"k": "report", "id": "a", "t": 4, "loss": 2.0, "p": "p1"}
    good = [header(), json.dumps(add), json.dumps(told)]
    whole = Logbook.replay(good).records()
    for event in (add, told):
        for key in set(event) - {"k", "id"}:
            for junk in ("x", [], {}, None, True, 10**400):
                bad = json.dumps({**event, "id": "a", key: junk})
                book = Logbook.replay([*good, bad, good[-1]])
                if not (key == "p" and junk == "x"):
                    assert book.damaged == 1, (key, junk)
                    assert book.records() == whole
                assert len(book.records()) == 1
