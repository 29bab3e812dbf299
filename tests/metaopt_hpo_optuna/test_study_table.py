"""Study → trial table and records → study: round trips, accounting of every state, and clear refusals."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from metaopt_hpo.trials.record import Curve, TrialRecord
from metaopt_hpo.trials.record_json import record_to_json
from metaopt_hpo.trials.schema import TableError
from metaopt_hpo_optuna import StudyWarning, add_records, trial_table
from metaopt_hpo_optuna.fields import record_from_json

positive = st.floats(1e-6, 1e12)
anything = st.floats(allow_nan=True, allow_infinity=True)


@st.composite
def records(draw: st.DrawFn) -> TrialRecord:
    n = draw(st.integers(0, 5))
    curve = None
    if n:
        column = st.lists(anything, min_size=n, max_size=n).map(tuple)
        curve = Curve(tuple(float(i + 1) for i in range(n)), draw(column), draw(column))
    return TrialRecord(
        size=draw(positive), tokens=draw(positive), batch=draw(positive), lr=draw(positive), loss=draw(anything),
        state=draw(st.sampled_from(["complete", "pruned", "diverged", "failed", "running"])),
        reason=draw(st.text()), seed=draw(st.integers(0, 2**31)), cost=draw(anything),
        params=draw(st.dictionaries(st.text(), st.one_of(st.integers(-9, 9), st.booleans(), st.text()), max_size=3)),
        curve=curve,
    )  # fmt: skip


@settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # how fast it draws is the machine's matter
@given(records())
def test_a_record_survives_json(record: TrialRecord) -> None:
    import json

    text = json.dumps(record_to_json(record), allow_nan=False)  # strict JSON: every database takes it
    assert repr(record_from_json(json.loads(text))) == repr(record)


@pytest.mark.parametrize("data", [None, 3, "x", {"sise": 1.0}, {"size": "big"}, {"size": 1.0}, {"curve": 3}])
def test_a_damaged_record_is_named(data: object) -> None:
    with pytest.raises(TableError, match="metaopt:record"):
        record_from_json(data)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=5, deadline=None)
@given(st.lists(records(), min_size=1, max_size=4))
@example([TrialRecord(size=1.0, tokens=1.0, batch=1.0, lr=1.0, loss=math.inf)])
def test_records_added_to_a_study_come_back(storage: BaseStorage, found: list[TrialRecord]) -> None:
    study = optuna.create_study(storage=storage)
    add_records(study, found)
    back = [record_from_json(t.user_attrs["metaopt:record"]) for t in study.trials]
    assert repr(back) == repr(found)
    assert all(t.state.is_finished() for t in study.trials)


def plain_study(direction: str = "minimize") -> optuna.Study:
    study = optuna.create_study(study_name="s", direction=direction)
    sign = 1 if direction == "minimize" else -1

    def add(state: TrialState, steps: dict[int, float], value: float | None = None) -> None:
        study.add_trial(
            optuna.create_trial(
                state=state,
                value=value,
                params={"lr": 0.01, "decay": 0.1},
                distributions={"lr": FloatDistribution(1e-3, 1), "decay": FloatDistribution(0, 1)},
                user_attrs={"size": 100, "tokens": 1000, "batch": 10},
                intermediate_values=steps,
            )
        )

    add(TrialState.COMPLETE, {500: sign * 3.0, 1000: sign * 2.5}, sign * 2.5)
    add(TrialState.PRUNED, {500: sign * 4.0}, sign * 4.0)
    add(TrialState.FAIL, {250: sign * 5.0})
    add(TrialState.RUNNING, {750: sign * 2.0})
    add(TrialState.WAITING, {})
    return study


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_every_state_is_kept_with_what_it_cost(direction: str) -> None:
    rows = trial_table(plain_study(direction)).records()
    assert [r.state for r in rows] == ["complete", "pruned", "failed", "running"]
    assert [r.tokens for r in rows] == [1000, 500, 250, 750]
    assert [r.cost for r in rows] == [6 * 100 * r.tokens for r in rows]
    assert [r.loss for r in rows] == [2.5, 4.0, 5.0, 2.0]  # always minimised
    assert {r.direction for r in rows} == {direction}
    assert {r.target_tokens for r in rows} == {1000}
    assert rows[0].params == {"decay": 0.1}
    assert rows[0].curve is not None
    assert rows[0].curve.loss == (3.0, 2.5)


def test_steps_that_are_no_tokens_make_no_curve() -> None:
    study = optuna.create_study()
    study.add_trial(
        optuna.create_trial(
            value=2.0,
            params={"lr": 0.01},
            distributions={"lr": FloatDistribution(1e-3, 1)},
            user_attrs={"size": 100, "tokens": 10, "batch": 1},
            intermediate_values={100: 2.0},
        )
    )
    with pytest.warns(StudyWarning, match="report tokens as the step"):
        assert trial_table(study).records()[0].curve is None


def test_an_empty_study_and_one_without_sizes_say_what_to_do() -> None:
    study = optuna.create_study(study_name="s")
    with pytest.raises(TableError, match="study 's' has no trials yet"):
        trial_table(study)
    study.optimize(lambda t: t.suggest_float("lr", 0.1, 1), n_trials=2)
    with pytest.raises(TableError, match=r"parameter or user attribute 'size'.*name another with size=…"):
        trial_table(study)
    assert len(trial_table(study, size=1e6, tokens=1e9, batch=1e5)) == 2


def test_trials_that_lack_a_size_are_counted() -> None:
    study = plain_study()
    study.optimize(lambda t: t.suggest_float("lr", 0.001, 1), n_trials=3)
    # the first of the three takes up the waiting trial, which has a size
    with pytest.warns(StudyWarning, match="2 of 7 trials of study 's' lack size"):
        assert len(trial_table(study)) == 5


def test_numpy_records_reach_a_database() -> None:
    study = optuna.create_study(storage="sqlite://")
    add_records(
        study, [TrialRecord(np.float32(8), np.int64(100), np.int32(10), np.float32(0.5), np.float64(2))]
    )  # type: ignore[arg-type]
    (record,) = trial_table(study).records()
    assert (record.size, record.tokens, record.batch, record.lr, record.loss) == (8, 100, 10, 0.5, 2)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="multi-objective"):
        trial_table(optuna.create_study(directions=["minimize"] * 2))
    with pytest.raises(ValueError, match="create the study with the trials' direction"):
        add_records(
            optuna.create_study(direction="maximize"),
            [TrialRecord(size=1, tokens=1, batch=1, lr=1, loss=1)],
        )


def test_a_killed_trial_with_a_record_of_success_counts_as_failed() -> None:
    study = optuna.create_study()
    trial = study.ask()
    record = TrialRecord(size=1.0, tokens=1.0, batch=1.0, lr=1.0, loss=math.pi)
    trial.set_user_attr("metaopt:record", record_to_json(record))
    study.tell(trial, state=TrialState.FAIL)
    assert trial_table(study).records()[0].state == "failed"
