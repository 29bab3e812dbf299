"""ScalingLawSearch: pilots first, then the optimum it predicts; it goes on exactly after a restore."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle, tune
from stub_cluster import world_loss

from metaopt_hpo.comparison.engine import SearchTask
from metaopt_hpo.comparison.law_search import law_search
from metaopt_hpo.comparison.objective import Configuration, Report, no_report
from metaopt_hpo.scaling import fit
from metaopt_hpo.trials.logbook_file import LogbookError
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_ray import ScalingLawSearch, strategy_space

PILOTS = [(1e6, 2e7), (2e6, 4e7), (4e6, 8e7)]
TARGET = (1.6e7, 3.2e8)
RECORDS = [
    TrialRecord(size=n, tokens=d, batch=1e4, lr=lr, loss=world_loss(n, d, lr), trial=f"{n}{lr}")
    for n, d in PILOTS
    for lr in (1e-3, 3e-3, 1e-2, 3e-2)
]


def search(**options: Any) -> ScalingLawSearch:
    defaults: dict[str, Any] = {"candidates": PILOTS, "target": TARGET, "lr": (1e-4, 1e-1), "batch": 10000}
    out = ScalingLawSearch(**{**defaults, **options})
    out.set_search_properties("loss", "min", {"strategy": "wsd"})
    return out


def end(s: ScalingLawSearch, key: str, config: dict[str, Any], fraction: float = 1.0) -> None:
    tokens = config["tokens"] * fraction
    result = {"loss": world_loss(config["size"], tokens, config["lr"]), "tokens_seen": tokens}
    s.on_trial_result(key, result)
    s.on_trial_complete(key, result)


def drive(s: ScalingLawSearch, count: int, first: int = 0) -> list[dict[str, Any]]:
    out = []
    for i in range(first, first + count):
        config = s.suggest(f"t{i}")
        end(s, f"t{i}", config)
        out.append(config)
    return out


def test_pilots_teach_and_the_target_is_run_at_its_optimum() -> None:
    s = search()
    configs = drive(s, 40)
    assert {c["size"] for c in configs[:10]} <= {p[0] for p in PILOTS}
    at_target = [c for c in configs if (c["size"], c["tokens"]) == TARGET]
    assert at_target
    best = world_loss(*TARGET, 6e-3 * 16**-0.35)
    assert min(world_loss(*TARGET, c["lr"]) for c in at_target) < 1.003 * best
    assert len({c["lr"] for c in at_target}) == len(at_target)  # drawn from the prediction's spread
    assert all(s.reasons[f"t{i}"] for i in range(40))


def test_earlier_work_is_learnt_from_at_once() -> None:
    table = TrialTable.from_records(RECORDS)
    s = search(sources=[table, table.records()[:0]])
    optimum = 6e-3 * 16**-0.35
    assert search().suggest("t0")["size"] < TARGET[0]
    for i in range(10):
        config = s.suggest(f"t{i}")
        if (config["size"], config["tokens"]) == TARGET:
            break
        end(s, f"t{i}", config)
    assert i < 8  # without the table it buys more pilots than that
    assert abs(math.log(config["lr"] / optimum)) < 0.4


class World:
    """Runs `world_loss`."""

    name = "world"
    sizes = tuple(n for n, _ in (*PILOTS, TARGET))

    def cost(self, c: Configuration) -> float:
        return 6.0 * c.size * c.tokens

    def run(self, c: Configuration, report: Report = no_report) -> TrialRecord:
        loss = world_loss(c.size, c.tokens, c.lr)
        return TrialRecord(size=c.size, tokens=c.tokens, batch=c.batch, lr=c.lr, loss=loss)


def test_every_suggestion_is_the_policys() -> None:
    s = search(seed=4)
    task = SearchTask(
        objective=World(), size=TARGET[0], tokens=TARGET[1], batch=1e4, lr_bounds=(1e-4, 1e-1),
        pilots=tuple(PILOTS), budget=math.inf, seed=4,
    )  # fmt: skip
    seen = set()
    for i, record in zip(range(40), law_search(task), strict=False):
        told = s.suggest(f"t{i}")
        assert (told["size"], told["tokens"], told["lr"]) == (record.size, record.tokens, record.lr)
        end(s, f"t{i}", told)
        seen.add(record.size)
    assert TARGET[0] in seen


def test_a_law_to_begin_with_says_where_the_target_runs_first() -> None:
    law = fit(TrialTable.from_records(RECORDS), draws=20)
    optimum = float(law.predict(*TARGET, 1e4).lr)
    told, untold = (
        [search(candidates=[TARGET], law=each, seed=k).suggest("t")["lr"] for k in range(4)]
        for each in (law, None)
    )
    assert told == pytest.approx([optimum] * 4, rel=0.1)
    assert max(untold) > 3 * min(untold)


def test_a_restored_search_goes_on_as_it_would_have(tmp_path: Path) -> None:
    s = search()
    drive(s, 18)
    running = s.suggest("t18")
    s.save(str(tmp_path / "state"))
    again = search()
    again.restore(str(tmp_path / "state"))
    for one in (s, again):
        end(one, "t18", running)
    assert drive(s, 5, 19) == drive(again, 5, 19)
    (tmp_path / "foreign").write_bytes(b"\x80\x04 pickle")
    with pytest.raises(LogbookError, match="saved state"):
        search().restore(str(tmp_path / "foreign"))


def test_a_trial_that_was_stopped_is_not_taken_for_a_finished_one() -> None:
    s = search()
    for i in range(20):
        end(s, f"t{i}", s.suggest(f"t{i}"), fraction=0.5)
    assert {e.state for e in s.book.entries.values()} == {"pruned"}
    assert set(s.reasons.values()) <= {
        "a pilot saves more runs of the target than it costs: cover the range first",
        "no optimum is seen yet: cover the range at the target",
    }


def test_errors_and_nan_teach_nothing_and_do_no_harm() -> None:
    s = search()
    s.suggest("a")
    s.on_trial_complete("a", error=True)
    s.suggest("b")
    s.on_trial_complete("b", {"loss": math.nan, "tokens_seen": 1e6})
    s.suggest("c")
    s.on_trial_complete("c", None)
    s.on_trial_complete("stranger", {"loss": 1.0})
    assert [e.state for e in s.book.entries.values()] == ["failed", "diverged", "pruned"]
    assert s.suggest("d")["lr"] > 0


def test_points_evaluated_elsewhere_count() -> None:
    s, same = search(), search(sources=[RECORDS])
    for r in RECORDS:
        point = {"size": r.size, "tokens": r.tokens, "batch": r.batch, "lr": r.lr}
        s.add_evaluated_point(point, r.loss)
        s.add_evaluated_point({**point, "lr": 0.5}, 1e-3, pruned=True)
    table = search(sources=[TrialTable.from_records(RECORDS)])
    restored = search()
    restored.set_state(json.loads(json.dumps(s.get_state())))
    found = [x.suggest("t") for x in (s, same, table, restored)]
    assert found == found[:1] * 4
    assert found[0] != search().suggest("t")


def test_the_rest_of_the_space_is_sampled_by_the_seed() -> None:
    space = {**strategy_space({"wsd": {"lr": 1e-2}, "cosine": {"lr": 1e-2, "warmup": (0.0, 0.1)}})}
    del space["lr"]
    configs = []
    for _ in range(2):
        s = ScalingLawSearch(candidates=PILOTS, lr=(1e-4, 1e-1), batch=1e4, seed=5)
        s.set_search_properties(
            "loss", "min", {**space, "nested": {"width": tune.randint(1, 9)}, "name": "x"}
        )
        configs.append([s.suggest(f"t{i}") for i in range(6)])
    assert [c["strategy"] for c in configs[0]] == [c["strategy"] for c in configs[1]]
    assert all(1 <= c["nested"]["width"] < 9 and c["name"] == "x" for c in configs[0])
    assert all((c["cosine.warmup"] is not None) == (c["strategy"] == "cosine") for c in configs[0])


def test_it_pickles_and_goes_by_name() -> None:
    drive(cloudpickle.loads(cloudpickle.dumps(search())), 3)
    made = tune.search.create_searcher("scaling_law", candidates=PILOTS, lr=(1e-3, 1e-1), batch=8)
    assert isinstance(made, ScalingLawSearch)
    with pytest.raises(TypeError, match="lrs"):
        tune.search.create_searcher("scaling_law", candidates=PILOTS, lrs=(1e-3, 1e-1), batch=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": []}, "candidates"),
        ({"lr": (0.1, 0.01)}, "lr must be"),
        ({"batch": (8, 4)}, "batch must be"),
        ({"mode": "max"}, "mode='min'"),
        ({"target": (-1, 2)}, "size"),
        ({"sources": [[1, 2]]}, "sources must hold"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(**options)


@pytest.mark.parametrize(
    ("space", "message"),
    [({"lr": tune.uniform(0, 1)}, "leave it out"), ({"width": tune.grid_search([1])}, "tune.choice")],
)
def test_a_space_it_cannot_follow_is_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScalingLawSearch(candidates=PILOTS, lr=(1e-3, 1e-1), batch=8).set_search_properties(
            "loss", "min", space
        )
