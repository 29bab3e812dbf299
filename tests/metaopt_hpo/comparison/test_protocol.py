"""compare(): equal budgets, pilots counted, resumed without repeating, refused with a clear sentence."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from metaopt_hpo.comparison import protocol
from metaopt_hpo.comparison.design import ComparisonPlan
from metaopt_hpo.comparison.objective import ObjectiveUnavailable
from metaopt_hpo.comparison.protocol import compare
from metaopt_hpo.comparison.results import CompareError, Comparison

sys.path.insert(0, str(Path(__file__).parent))
from toy import DictEngine, Parabola

PLAN = ComparisonPlan(
    workload="parabola",
    methods=("grid", "metaoptimize", "law"),
    seeds=(0, 1, 2),
    size=1e6,
    pilot_sizes=(1e3, 1e4, 1e5),
    tokens=1e6,
    batch=1e3,
    lr_bounds=(1e-4, 1e-1),
    runs=5,
    pilot_runs=5,
    engine="dict",
)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> DictEngine:
    engine = DictEngine()
    monkeypatch.setattr(protocol, "get_engine", lambda name: engine)
    return engine


def test_every_method_and_seed_gets_the_same_budget_pilots_included(
    engine: DictEngine, tmp_path: Path
) -> None:
    result = compare(Parabola(), PLAN, tmp_path / "out", workers=1)
    frame = result.table.frame
    budget = 5 * 6 * 1e6 * 1e6
    spent = frame.groupby(["method", "seed"])["cost"].sum()
    for seed in PLAN.seeds:
        assert spent["grid", seed] == spent["metaoptimize", seed] == budget
        law = spent["law", seed] + spent["pilot", seed]
        assert budget - 6e12 < law <= budget
    assert set(frame.loc[frame["method"] == "pilot", "size"]) == {1e3, 1e4, 1e5}


def test_results_are_read_back_as_they_were(engine: DictEngine, tmp_path: Path) -> None:
    result = compare(Parabola(), PLAN, tmp_path / "out", workers=1, command="metaopt-hpo compare x")
    read = Comparison.read(tmp_path / "out")
    assert read.plan == PLAN
    assert read.table.records() == result.table.records() or len(read.table) == len(result.table)
    assert read.command == "metaopt-hpo compare x"
    assert read.machine["python"]


def test_interrupted_and_started_again_runs_only_what_is_left(engine: DictEngine, tmp_path: Path) -> None:
    engine.dies_after = 17
    with pytest.raises(KeyboardInterrupt):
        compare(Parabola(), PLAN, tmp_path / "out", workers=1)
    assert not (tmp_path / "out" / "trials.parquet").exists()
    engine.dies_after = None
    result = compare(Parabola(), PLAN, tmp_path / "out", workers=1)
    assert engine.runs == len(result.table)


def test_another_plan_in_the_same_folder_is_refused(engine: DictEngine, tmp_path: Path) -> None:
    compare(Parabola(), PLAN, tmp_path / "out", workers=1)
    with pytest.raises(CompareError, match=r"other runs, seeds"):
        compare(Parabola(), replace(PLAN, runs=6, seeds=(0,)), tmp_path / "out", workers=1)


def test_a_folder_that_cannot_be_written_is_named(engine: DictEngine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CompareError, match="cannot write to results folder"):
        compare(Parabola(), PLAN, tmp_path / "file" / "out", workers=1)


def test_missing_data_are_said_before_anything_begins(engine: DictEngine, tmp_path: Path) -> None:
    from metaopt_hpo.comparison.training_objective import TrainObjective
    from metaopt_hpo.workloads import members

    objective = TrainObjective(members("cifar10", [4, 8], data=tmp_path / "nowhere"))
    plan = replace(PLAN, methods=("grid",), size=objective.sizes[-1], pilot_sizes=())
    with pytest.raises(ObjectiveUnavailable, match="cifar-10-batches-bin"):
        compare(objective, plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_foreign_and_newer_folders_are_refused(engine: DictEngine, tmp_path: Path) -> None:
    with pytest.raises(CompareError, match="no finished comparison"):
        Comparison.read(tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(CompareError, match="not a plan"):
        compare(Parabola(), PLAN, tmp_path, workers=1)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(CompareError, match="cannot be read"):
        Comparison.read(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps({"version": 99, "plan": {}, "machine": {}}))
    with pytest.raises(CompareError, match="newer version"):
        Comparison.read(tmp_path)


def test_a_method_the_engine_lacks_is_named(engine: DictEngine, tmp_path: Path) -> None:
    with pytest.raises(CompareError, match="no method 'tpe'"):
        compare(Parabola(), replace(PLAN, methods=("tpe",)), tmp_path, workers=1)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"methods": ()}, "methods"),
        ({"methods": ("grid", "grid")}, "methods"),
        ({"methods": ("magic",)}, "magic"),
        ({"seeds": ()}, "seeds"),
        ({"lr_bounds": (1e-1, 1e-3)}, "lr_bounds"),
        ({"runs": 0}, "runs"),
        ({"pilot_sizes": (1e6,)}, "pilot sizes"),
        ({"pilot_sizes": (1e3, 1e4)}, "at least three pilot sizes"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(change: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        replace(PLAN, **change)


def test_plan_round_trips_through_json() -> None:
    assert ComparisonPlan.from_json(json.loads(json.dumps(PLAN.to_json()))) == PLAN


JUNK = [None, -1, "x", [], {}, [None], True, 1e308, float("nan"), "5", 10**400]


@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_a_damaged_plan_is_one_sentence(junk: object, tmp_path: Path, engine: DictEngine) -> None:
    compare(Parabola(), PLAN, tmp_path, workers=1)
    file = tmp_path / "plan.json"
    whole = json.loads(file.read_text())
    places = [(k,) for k in whole] + [("plan", k) for k in whole["plan"]] + [("machine", "python")]
    for place in places:
        data = json.loads(json.dumps(whole))
        inner = data
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = junk
        file.write_text(json.dumps(data))
        for use in (
            lambda: Comparison.read(tmp_path),
            lambda: compare(Parabola(), PLAN, tmp_path, workers=1),
        ):
            try:
                use()
            except CompareError as error:
                sentence = str(error)
                assert "\n" not in sentence
    for text in ("", "[" * 100_000, '{"plan"', "\x00"):
        file.write_text(text)
        with pytest.raises(CompareError):
            Comparison.read(tmp_path)


def test_a_plan_of_pilots_is_no_plan_of_a_comparison(tmp_path: Path) -> None:
    with pytest.raises(CompareError, match="takes a ComparisonPlan, got dict"):
        compare(Parabola(), {"methods": ("grid",)}, tmp_path)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
