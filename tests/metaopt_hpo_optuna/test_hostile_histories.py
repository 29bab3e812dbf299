"""Whatever stands in a study, sampler and pruner answer, and every worker gets the same answer each time it asks."""

from __future__ import annotations

import math
import warnings

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo_optuna import ScalingLawPruner, ScalingLawSampler, retry_stale_trials

SPACE = FloatDistribution(1e-4, 1e-1, log=True)
MINE = {"size": 64e6, "tokens": 128e7, "batch": 32.0}
SIZES = (1e6, 4e6, 16e6)

numbers = st.one_of(
    st.floats(width=64), st.integers(-3, 3), st.sampled_from([10**400, -(10**400), 2**63, 1e308, 5e-324])
)
junk = st.one_of(
    numbers,
    st.booleans(),
    st.none(),
    st.text(max_size=3),
    st.sampled_from([[], {}, [None], {"a": 1}, "nan", "1e3"]),
)
good = {"size": st.sampled_from(SIZES), "tokens": st.sampled_from([2e7, 8e7]), "batch": st.just(32.0)}
fields = [f for f in TrialRecord.__dataclass_fields__ if f != "curve"]
records = st.dictionaries(st.sampled_from(fields), junk, max_size=6)
attributes = st.builds(
    lambda sound, odd: {**sound, **odd},
    st.fixed_dictionaries(good),
    st.dictionaries(
        st.sampled_from([*good, "lr", "strategy", "tuning", "metaopt:lease", "metaopt:flops_per_token"]),
        junk, max_size=3,
    ),
)  # fmt: skip
parameters = st.one_of(
    st.floats(1e-4, 1e-1).map(lambda v: ({"lr": v}, {"lr": SPACE})),
    st.integers(-5, 5).map(lambda v: ({"lr": v}, {"lr": IntDistribution(-5, 5)})),
    st.sampled_from(["a", None, True]).map(
        lambda v: ({"lr": v}, {"lr": CategoricalDistribution(["a", None, True])})
    ),
    st.just(({}, {})),
)
ended = st.sampled_from(
    [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
)
steps = st.one_of(st.integers(0, 5), st.sampled_from([10**6, 2**31 - 1, 10**9]))


@st.composite
def trials(draw: st.DrawFn) -> FrozenTrial:
    state, (params, distributions), attrs = draw(ended), draw(parameters), draw(attributes)
    if draw(st.booleans()):
        attrs["metaopt:record"] = draw(st.one_of(records, junk))
    value = draw(numbers.filter(lambda v: isinstance(v, float) and not math.isnan(v)))
    reports = {k: float(v) for k, v in draw(st.dictionaries(steps, st.floats(), max_size=4)).items()}
    return optuna.create_trial(
        state=state,
        value=value if state == TrialState.COMPLETE else None,
        params=params,
        distributions=distributions,
        user_attrs=attrs,
        intermediate_values=reports,
    )


def sound(n: float, k: int) -> FrozenTrial:
    """A trial of a search that goes well."""
    lr = 5e-4 * 100 ** (k / 4)
    return optuna.create_trial(
        value=2 + (n / 1e6) ** -0.3 + math.log(lr / 0.01) ** 2 / 50,
        params={"lr": lr},
        distributions={"lr": SPACE},
        user_attrs={"size": n, "tokens": 20 * n, "batch": 32.0},
        intermediate_values={round(20 * n): 3.0},
    )


def answers(worker: optuna.Study, asked: FrozenTrial, reports: dict[int, float]) -> tuple[float, bool]:
    """What a worker would do with a trial; nothing of it is kept."""
    # a study holds what it read at its last ask
    study = optuna.load_study(
        study_name="s", storage=worker._storage, sampler=worker.sampler, pruner=worker.pruner
    )
    trial = study._storage.get_trial(asked._trial_id)
    for name, value in MINE.items():
        trial.set_user_attr(name, value)
    lr = study.sampler.sample_independent(study, trial, "lr", SPACE)
    trial.set_user_attr("lr", lr)
    trial.intermediate_values = reports
    stop = study.pruner.prune(study, trial)
    assert type(stop) is bool
    assert 1e-4 <= lr <= 1e-1
    return lr, stop


def check(hostile: list[FrozenTrial], known: bool, reports: dict[int, float]) -> tuple[float, bool]:
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(study_name="s", storage=storage)

    def worker() -> optuna.Study:
        parts = {"sampler": ScalingLawSampler(seed=0), "pruner": ScalingLawPruner()}
        return optuna.load_study(study_name="s", storage=storage, **parts)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        early = worker()
        asked = early.ask()
        for n in SIZES if known else ():
            for k in range(5):
                early.add_trial(sound(n, k))
        for i, trial in enumerate(hostile):
            early.add_trial(trial)
            if i % 4 == 0:
                answers(early, asked, reports)
        got = [answers(who, asked, reports) for who in (early, worker(), early, worker())]
        assert len(set(map(repr, got))) == 1, got
        retry_stale_trials(early)
    return got[0]


hostile = st.lists(trials(), max_size=12)
reported = st.dictionaries(steps, st.floats(), max_size=4)
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


@given(hostile, st.booleans(), reported)
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=QUIET)
def test_every_worker_answers_and_all_answer_the_same(
    history: list[FrozenTrial], known: bool, reports: dict[int, float]
) -> None:
    check(history, known, reports)


@pytest.mark.sweep
@given(hostile, st.booleans(), reported)
@settings(max_examples=300, deadline=None, suppress_health_check=QUIET)
def test_every_worker_answers_in_many_histories(
    history: list[FrozenTrial], known: bool, reports: dict[int, float]
) -> None:
    check(history, known, reports)


@pytest.mark.parametrize("size", [5e-324, 1.7e308])
def test_a_stopped_trial_of_absurd_size_leaves_the_law_in_charge(size: float) -> None:
    odd = optuna.create_trial(
        state=TrialState.PRUNED,
        params={"lr": 1e-3},
        distributions={"lr": SPACE},
        user_attrs={"size": size, "tokens": 2e7, "batch": 32.0},
        intermediate_values={1: 3.0},
    )
    lr, _ = check([odd] * 3, True, {})
    assert lr == pytest.approx(0.01, rel=1.0)


def test_the_check_itself_sees_a_law() -> None:
    lr, stop = check([], True, {10**8: 9.0, 5 * 10**8: 9.0})
    assert stop
    assert lr == pytest.approx(0.01, rel=1.0)
