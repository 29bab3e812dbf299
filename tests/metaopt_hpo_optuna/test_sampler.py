"""Optuna's conformance suites over ScalingLawSampler, its reproducibility tests mirrored, and what it promises."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)
from optuna.trial import Trial, TrialState

from metaopt_hpo_optuna import ScalingLawSampler, StudyWarning

TOKENS = 2**16
SIZES = (1e4, 2e4, 4e4)


def best_lr(size: float) -> float:
    return 0.03 * (size / 1e4) ** -0.4


def final_loss(size: float, lr: float) -> float:
    return 2.0 + 2.0 * (size / 1e4) ** -0.3 + 0.15 * math.log(lr / best_lr(size)) ** 2


def objective(trial: Trial, size: float) -> float:
    for name, value in {"size": size, "tokens": TOKENS, "batch": 512}.items():
        trial.set_user_attr(name, value)
    lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
    return final_loss(size, lr) + 0.01 * trial.suggest_float("decay", 0, 1)


def learn(study: optuna.Study, sizes: tuple[float, ...] = SIZES, trials: int = 5) -> None:
    for size in sizes:
        study.optimize(lambda trial, size=size: objective(trial, size), n_trials=trials)


@pytest.mark.filterwarnings("ignore::metaopt_hpo_optuna.fields.StudyWarning")
class TestOptunasSuites(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        # as Optuna tests its own TPESampler: without a random start-up there are relative parameters at once
        return lambda: ScalingLawSampler(base_sampler=TPESampler(seed=0, n_startup_trials=0))


@pytest.mark.filterwarnings("ignore::metaopt_hpo_optuna.fields.StudyWarning")
class TestOptunasSuitesOverRandom(BasicSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: ScalingLawSampler(base_sampler=RandomSampler(seed=0))


def lrs(study: optuna.Study) -> list[float]:
    return [t.params["lr"] for t in study.trials]


def test_reproducible_by_seed() -> None:
    found = []
    for seed in (1, 1, 2):
        study = optuna.create_study(sampler=ScalingLawSampler(seed=seed))
        learn(study, (*SIZES, 1e5), trials=4)
        found.append([(t.params["lr"], t.params["decay"]) for t in study.trials])
    assert found[0] == found[1] != found[2]


SCRIPT = """
import json, sys
sys.path.insert(0, {folder!r})
import optuna; optuna.logging.set_verbosity(40)
from test_sampler import ScalingLawSampler, learn, lrs, SIZES
study = optuna.create_study(sampler=ScalingLawSampler(seed=7))
learn(study, (*SIZES, 1e5), trials=4)
print(json.dumps(lrs(study)))
"""


def test_reproducible_in_another_process() -> None:
    study = optuna.create_study(sampler=ScalingLawSampler(seed=7))
    learn(study, (*SIZES, 1e5), trials=4)
    folder = __file__.rsplit("/", 1)[0]
    for hash_seed in ("0", "1"):
        out = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(folder=folder)],
            capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": hash_seed},
        )  # fmt: skip
        assert json.loads(out.stdout) == lrs(study)


def test_a_restarted_worker_proposes_what_the_first_would_have(
    make_storage: Callable[[str], BaseStorage],
) -> None:
    whole = optuna.create_study(sampler=ScalingLawSampler(seed=3, base_sampler=RandomSampler(seed=0)))
    learn(whole, (*SIZES, 1e5), trials=4)
    storage = make_storage("sqlite")
    first = optuna.create_study(
        study_name="s", storage=storage, sampler=ScalingLawSampler(seed=3, base_sampler=RandomSampler(seed=0))
    )
    learn(first, SIZES, trials=4)
    second = optuna.load_study(
        study_name="s", storage=storage, sampler=ScalingLawSampler(seed=3, base_sampler=RandomSampler(seed=0))
    )
    # the base sampler's own draws (decay) are a stream; the law's proposals are not
    second.optimize(lambda trial: objective(trial, 1e5), n_trials=1)
    assert lrs(second) == pytest.approx(lrs(whole)[: len(lrs(second))], rel=0.05)


def test_reseed_changes_the_draws() -> None:
    a, b = (optuna.create_study(sampler=ScalingLawSampler(seed=0)) for _ in range(2))
    b.sampler.reseed_rng()
    learn(a, SIZES[:1], trials=3)
    learn(b, SIZES[:1], trials=3)
    assert lrs(a) != lrs(b)


def test_a_large_size_starts_at_the_laws_optimum_and_stays_near() -> None:
    study = optuna.create_study(sampler=ScalingLawSampler(seed=0))
    learn(study, trials=7)
    study.optimize(lambda trial: objective(trial, 3e5), n_trials=6)
    large = [t.params["lr"] for t in study.trials[-6:]]
    assert abs(math.log(large[0] / best_lr(3e5))) < 0.5
    assert all(abs(math.log(lr / best_lr(3e5))) < 1.2 for lr in large)
    assert len(set(large)) == 6


def test_the_spread_narrows_as_evidence_grows() -> None:
    def spread(trials: int) -> float:
        study = optuna.create_study(sampler=ScalingLawSampler(seed=0))
        learn(study, trials=trials)
        study.optimize(lambda trial: objective(trial, 3e5), n_trials=1)
        known = study.sampler._evidence.read(study)  # type: ignore[attr-defined]
        return float(known.law.predict(3e5, TOKENS).spread[0])

    assert spread(16) < spread(4)


def test_the_first_trials_cover_the_range_and_later_sizes_both_slopes() -> None:
    study = optuna.create_study(sampler=ScalingLawSampler(seed=0))
    learn(study, SIZES[:1], trials=5)
    xs = sorted(math.log(lr) for lr in lrs(study))
    assert xs[-1] - xs[0] > 0.5 * math.log(1e3)
    study.sampler = ScalingLawSampler(seed=0, target=(1e6, TOKENS))
    learn(study, SIZES[1:2], trials=5)
    xs = sorted(math.log(lr / best_lr(SIZES[1])) for lr in lrs(study)[5:])
    assert xs[0] < 0 < xs[-1]


def test_batch_and_lr_are_chosen_together() -> None:
    def loss(trial: Trial, size: float) -> float:
        trial.set_user_attr("size", size)
        trial.set_user_attr("tokens", TOKENS)
        lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
        batch = trial.suggest_int("batch", 64, 8192, log=True)
        v = math.log(batch / 700)
        return final_loss(size, lr * math.exp(-0.5 * v)) + 0.1 * v * v

    study = optuna.create_study(sampler=ScalingLawSampler(seed=0))
    for size in SIZES:
        study.optimize(lambda trial, size=size: loss(trial, size), n_trials=14)
    study.optimize(lambda trial: loss(trial, 1e5), n_trials=4)
    large = study.trials[-4:]
    assert all(isinstance(t.params["batch"], int) for t in large)
    # four random draws of (lr, batch) would be worse by far more than this
    assert min(t.value for t in large) < final_loss(1e5, best_lr(1e5)) + 0.1


@pytest.mark.parametrize("suggest", ["choices", "integers", "steps", "narrow"])
def test_any_numeric_range_of_lr(suggest: str) -> None:
    def loss(trial: Trial, size: float) -> float:
        for name, value in {"size": size, "tokens": TOKENS, "batch": 512}.items():
            trial.set_user_attr(name, value)
        if suggest == "choices":
            lr = trial.suggest_categorical("lr", [1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3])
        elif suggest == "integers":
            lr = 1e-3 * trial.suggest_int("lr", 1, 1000, log=True)
        elif suggest == "steps":
            lr = trial.suggest_float("lr", 0.002, 0.3, step=0.002)
        else:
            lr = trial.suggest_float("lr", 0.2, 0.3)
        assert isinstance(lr, float)
        return final_loss(size, lr)

    study = optuna.create_study(sampler=ScalingLawSampler(seed=0))
    for size in (*SIZES, 1e5):
        study.optimize(lambda trial, size=size: loss(trial, size), n_trials=4)
    assert all(t.state == TrialState.COMPLETE for t in study.trials)


def test_source_studies_teach(storage: BaseStorage) -> None:
    source = optuna.create_study(sampler=ScalingLawSampler(seed=0), storage=storage)
    learn(source, trials=6)
    study = optuna.create_study(sampler=ScalingLawSampler(seed=0, source_studies=[source]))
    study.optimize(lambda trial: objective(trial, 2e5), n_trials=1)
    assert abs(math.log(lrs(study)[0] / best_lr(2e5))) < 0.5


def test_without_sizes_it_is_its_base_sampler_and_says_so_once() -> None:
    def loss(trial: Trial) -> float:
        return trial.suggest_float("lr", 1e-3, 1.0, log=True) + trial.suggest_float("x", 0, 1)

    plain = optuna.create_study(sampler=TPESampler(seed=5))
    plain.optimize(loss, n_trials=15)
    ours = optuna.create_study(sampler=ScalingLawSampler(seed=5))
    with pytest.warns(StudyWarning, match="TPESampler alone; set both") as seen:
        ours.optimize(loss, n_trials=15)
    assert len([w for w in seen if w.category is StudyWarning]) == 1
    assert [t.params for t in ours.trials] == [t.params for t in plain.trials]


def test_a_size_that_is_itself_a_parameter() -> None:
    def loss(trial: Trial) -> float:
        size = trial.suggest_categorical("size", list(SIZES))
        trial.set_user_attr("tokens", TOKENS)
        trial.set_user_attr("batch", 512)
        return final_loss(size, trial.suggest_float("lr", 1e-3, 1.0, log=True))

    study = optuna.create_study(sampler=ScalingLawSampler(seed=0))
    study.optimize(loss, n_trials=25)
    late = study.trials[-5:]
    assert all(abs(math.log(t.params["lr"] / best_lr(t.params["size"]))) < 2.0 for t in late)


def test_enqueued_values_win() -> None:
    study = optuna.create_study(sampler=ScalingLawSampler(seed=0))
    learn(study)
    study.enqueue_trial({"lr": 0.123})
    study.optimize(lambda trial: objective(trial, 1e5), n_trials=1)
    assert study.trials[-1].params["lr"] == 0.123


def test_ask_and_tell_with_distributions() -> None:
    study = optuna.create_study(sampler=ScalingLawSampler(tokens=TOKENS, batch=512, seed=0))
    for i in range(18):
        trial = study.ask(
            {
                "size": IntDistribution(10_000, 40_000, step=10_000),
                "lr": FloatDistribution(1e-3, 1.0, log=True),
            }
        )
        study.tell(trial, final_loss(trial.params["size"], trial.params["lr"]))
        assert trial.number == i


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed must be a whole number >= 0"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"tokens": -3.0}, "tokens must be the name of a parameter or user attribute or a positive number"),
        ({"base_sampler": "tpe"}, "base_sampler must be an optuna sampler"),
        ({"source_studies": [object()]}, "source_studies must hold optuna studies"),
        ({"source_studies": optuna.create_study()}, "must be a list of studies, got one study"),
        ({"models": ["small", "large"]}, r"models must map each choice of 'model' to \(size, tokens\)"),
        ({"models": {"small": 1e6}}, "got 'small': 1000000.0"),
        ({"target": 1e9}, r"target must be \(size, tokens\), both > 0"),
        ({"target": (1e9, 0)}, r"target must be \(size, tokens\), both > 0"),
    ],
)
def test_bad_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScalingLawSampler(**options)  # type: ignore[arg-type]


def test_a_size_that_changes_between_lr_and_batch_is_said() -> None:
    trial = optuna.create_study(sampler=ScalingLawSampler(seed=0)).ask()
    trial.set_user_attr("size", SIZES[0])
    trial.set_user_attr("tokens", TOKENS)
    trial.suggest_float("lr", 1e-3, 1.0, log=True)
    trial.set_user_attr("size", SIZES[1])
    with pytest.warns(StudyWarning, match="one trial is one run: set them once"):
        trial.suggest_float("batch", 64, 4096, log=True)


def test_a_score_is_searched_without_a_law_and_it_says_so() -> None:
    study = optuna.create_study(direction="maximize", sampler=ScalingLawSampler(seed=0))
    with pytest.warns(StudyWarning, match="minimize 1 - score"):
        learn(study, sizes=SIZES[:1], trials=4)
    assert all(1e-3 <= lr <= 1.0 for lr in lrs(study))


def test_a_size_that_is_no_number_is_named() -> None:
    study = optuna.create_study(sampler=ScalingLawSampler(seed=0))
    trial = study.ask()
    trial.set_user_attr("size", "7B")
    trial.set_user_attr("tokens", TOKENS)
    with pytest.warns(StudyWarning, match="size of trial 0 must be a finite number > 0"):
        trial.suggest_float("lr", 1e-3, 1.0, log=True)
