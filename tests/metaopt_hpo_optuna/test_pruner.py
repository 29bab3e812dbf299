"""A conformance suite for pruners, in the form of Optuna's for samplers, run over ours and Optuna's own."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import numpy as np
import optuna
import pytest
from optuna.pruners import BasePruner
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from metaopt_hpo.trials.record import TrialRecord, token_grid
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_optuna import ScalingLawPruner, StudyWarning

TOKENS = 2**16
GRID = token_grid(TOKENS, start=2**10, stride=4)
SMALL = (1e4, 2e4, 4e4)
LARGE = 1e5


def final_loss(size: float, lr: float) -> float:
    x = math.log(lr / (0.03 * (size / 1e4) ** -0.4))
    return 2.0 + 2.0 * (size / 1e4) ** -0.3 + 0.15 * x * x


def loss_at(size: float, lr: float, t: float) -> float:
    return final_loss(size, lr) * (1 + 6.0 * (t**-0.5 - TOKENS**-0.5))


def fill(
    study: Study, sizes: tuple[float, ...] = SMALL, lrs: tuple[float, ...] = (3e-3, 1e-2, 2e-2, 5e-2, 0.2)
) -> None:
    """Finished trials of these sizes, in the study's own direction."""
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    for size in sizes:
        for lr in lrs:
            study.add_trial(
                optuna.create_trial(
                    value=sign * final_loss(size, lr),
                    params={"lr": lr},
                    distributions={"lr": optuna.distributions.FloatDistribution(1e-4, 1.0, log=True)},
                    user_attrs={"size": size, "tokens": TOKENS, "batch": 512},
                    intermediate_values={t: sign * loss_at(size, lr, t) for t in GRID},
                )
            )


def begin(study: Study, lr: float = 1.0, size: float = LARGE, **attributes: float) -> Trial:
    study.enqueue_trial({"lr": lr})
    trial = study.ask()
    for name, value in {"size": size, "tokens": TOKENS, "batch": 512, **attributes}.items():
        trial.set_user_attr(name, value)
    trial.suggest_float("lr", 1e-4, 1.0, log=True)
    return trial


def decide(study: Study, trial: Trial, values: list[float], steps: list[int] = GRID) -> list[bool]:
    """Report values until the pruner stops the trial; its decision after each."""
    out = []
    for step, value in zip(steps, values, strict=False):
        trial.report(value, step)
        out.append(trial.should_prune())
        if out[-1]:
            break
    return out


class PrunerTestCase:
    """What every pruner owes Optuna. Subclasses give `pruner`, and `prunes` where bad trials must be stopped."""

    prunes = True
    answers: tuple[type, ...] = (bool,)

    @pytest.fixture
    def pruner(self) -> Callable[[], BasePruner]:
        raise NotImplementedError

    def study(
        self, pruner: Callable[[], BasePruner], direction: str = "minimize", storage: object = None
    ) -> Study:
        study = optuna.create_study(pruner=pruner(), direction=direction, storage=storage)  # type: ignore[arg-type]
        fill(study, (*SMALL, LARGE))
        return study

    def test_no_reports_no_pruning(self, pruner: Callable[[], BasePruner]) -> None:
        assert begin(self.study(pruner)).should_prune() is False

    def test_empty_study(self, pruner: Callable[[], BasePruner]) -> None:
        study = optuna.create_study(pruner=pruner())
        assert decide(study, begin(study), [1e3] * 3)[0] is False

    def test_returns_a_builtin_bool(self, pruner: Callable[[], BasePruner]) -> None:
        study = self.study(pruner)
        for lr in (0.01, 1.0):
            answers = decide(study, begin(study, lr), [loss_at(LARGE, lr, t) for t in GRID])
            assert all(type(a) in self.answers for a in answers)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_takes_values_that_are_not_finite(self, pruner: Callable[[], BasePruner], value: float) -> None:
        study = self.study(pruner)
        assert all(type(a) in self.answers for a in decide(study, begin(study), [value] * 3))

    def test_good_is_kept_and_bad_is_stopped(self, pruner: Callable[[], BasePruner]) -> None:
        study = self.study(pruner)
        best = 0.03 * (LARGE / 1e4) ** -0.4
        good = begin(study, best)
        assert not any(decide(study, good, [0.97 * loss_at(LARGE, best, t) for t in GRID]))
        study.tell(good, final_loss(LARGE, best))
        if self.prunes:
            assert any(decide(study, begin(study, 1.0), [loss_at(LARGE, 1.0, t) for t in GRID]))

    def test_minimise_and_maximise_are_mirror_images(self, pruner: Callable[[], BasePruner]) -> None:
        for lr in (2e-3, 1e-2, 5e-2, 0.3, 1.0):
            down, up = self.study(pruner), self.study(pruner, "maximize")
            values = [loss_at(LARGE, lr, t) for t in GRID]
            assert decide(down, begin(down, lr), values) == decide(up, begin(up, lr), [-v for v in values])

    def test_does_not_change_what_it_is_given(self, pruner: Callable[[], BasePruner]) -> None:
        study = self.study(pruner)
        trial = begin(study)
        for t in GRID:
            trial.report(loss_at(LARGE, 1.0, t), t)
        frozen = study.trials[-1]
        seen = {t.number: repr(t) for t in study.trials[:-1]}
        before = repr(frozen)
        study.pruner.prune(study, frozen)
        assert repr(frozen) == before
        assert {t.number: repr(t) for t in study.trials[:-1]} == seen

    def test_asked_again_it_answers_the_same(self, pruner: Callable[[], BasePruner]) -> None:
        study = self.study(pruner)
        trial = begin(study)
        for t in GRID[:6]:
            trial.report(loss_at(LARGE, 1.0, t), t)
        assert trial.should_prune() == trial.should_prune() == trial.should_prune()

    def test_pickles_and_copies_to_one_that_decides_alike(self, pruner: Callable[[], BasePruner]) -> None:
        study = self.study(pruner)
        trial = begin(study)
        for t in GRID:
            trial.report(loss_at(LARGE, 1.0, t), t)
        frozen = study.trials[-1]
        answer = study.pruner.prune(study, frozen)
        for other in (pickle.loads(pickle.dumps(study.pruner)), copy.deepcopy(study.pruner)):  # noqa: S301  ours
            assert other.prune(study, frozen) == answer

    def test_two_workers_decide_alike(
        self, pruner: Callable[[], BasePruner], make_storage: Callable[[str], BaseStorage], tmp_path: object
    ) -> None:
        storage = make_storage("sqlite")
        first = self.study(pruner, storage=storage)
        # the second worker arrives late and has its own pruner
        answers = []
        trial = begin(first, 0.5)
        for t in GRID:
            trial.report(loss_at(LARGE, 0.5, t), t)
            answers.append(trial.should_prune())
        second = optuna.load_study(study_name=first.study_name, storage=storage, pruner=pruner())
        assert second.pruner.prune(second, second.trials[-1]) == answers[-1]

    def test_in_every_storage(self, pruner: Callable[[], BasePruner], storage: BaseStorage) -> None:
        study = self.study(pruner, storage=storage)
        in_memory = self.study(pruner)
        values = [loss_at(LARGE, 1.0, t) for t in GRID]
        assert decide(study, begin(study), values) == decide(in_memory, begin(in_memory), values)

    def test_inside_optimize_with_threads(self, pruner: Callable[[], BasePruner]) -> None:
        study = self.study(pruner)

        def objective(trial: Trial) -> float:
            for name, value in {"size": LARGE, "tokens": TOKENS, "batch": 512}.items():
                trial.set_user_attr(name, value)
            lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
            for t in GRID:
                trial.report(loss_at(LARGE, lr, t), t)
                if trial.should_prune():
                    raise optuna.TrialPruned
            return final_loss(LARGE, lr)

        study.optimize(objective, n_trials=12, n_jobs=4)
        assert {t.state for t in study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}


class TestScalingLawPruner(PrunerTestCase):
    @pytest.fixture
    def pruner(self) -> Callable[[], BasePruner]:
        return ScalingLawPruner


class TestWrappedScalingLawPruner(PrunerTestCase):
    @pytest.fixture
    def pruner(self) -> Callable[[], BasePruner]:
        return lambda: ScalingLawPruner(wrapped=optuna.pruners.MedianPruner())


class TestMedianPruner(PrunerTestCase):
    answers = (bool, np.bool_)  # Optuna's own returns NumPy's

    @pytest.fixture
    def pruner(self) -> Callable[[], BasePruner]:
        return optuna.pruners.MedianPruner


class TestHyperbandPruner(PrunerTestCase):
    prunes = False  # the first trials of a bracket are promoted whatever their values

    @pytest.fixture
    def pruner(self) -> Callable[[], BasePruner]:
        return lambda: optuna.pruners.HyperbandPruner(min_resource=GRID[0], max_resource=TOKENS)


class TestSuccessiveHalvingPruner(PrunerTestCase):
    prunes = False

    @pytest.fixture
    def pruner(self) -> Callable[[], BasePruner]:
        return lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=GRID[0])


# -- what is ours alone ----------------------------------------------------------------------------------------


@pytest.fixture
def study() -> Study:
    study = optuna.create_study(pruner=ScalingLawPruner())
    fill(study)
    return study


def test_a_first_large_trial_is_judged_by_the_law_of_small_ones(study: Study) -> None:
    bad = begin(study, 1.0)
    answers = decide(study, bad, [loss_at(LARGE, 1.0, t) for t in GRID])
    assert answers[-1] is True
    assert len(answers) < len(GRID) - 2  # a saving, not a post-mortem
    best = 0.03 * (LARGE / 1e4) ** -0.4
    assert not any(decide(study, begin(study, best), [loss_at(LARGE, best, t) for t in GRID]))


def test_the_reason_is_written_to_the_trial(storage: BaseStorage) -> None:
    study = optuna.create_study(pruner=ScalingLawPruner(), storage=storage)
    fill(study)
    trial = begin(study, 1.0)
    answers = decide(study, trial, [loss_at(LARGE, 1.0, t) for t in GRID])
    reason = study.trials[-1].user_attrs["metaopt:reason"]
    assert f"after {GRID[len(answers) - 1]} tokens" in reason
    assert "% chance of a loss below" in reason


def test_small_trials_are_left_to_the_wrapped_pruner() -> None:
    asked: list[int] = []

    class Spy(BasePruner):
        def prune(self, study: Study, trial: FrozenTrial) -> bool:
            asked.append(trial.number)
            return False

    study = optuna.create_study(pruner=ScalingLawPruner(wrapped=Spy()))
    fill(study, (*SMALL, LARGE), lrs=(3e-3, 1e-2, 3e-2, 0.1))  # fewer than a size has to teach
    small = begin(study, 1.0, size=SMALL[0])
    assert not any(decide(study, small, [loss_at(SMALL[0], 1.0, t) for t in GRID]))
    assert asked == [small.number] * (len(GRID) - 1)  # at its planned end there is nothing left to save
    asked.clear()
    low = optuna.create_study(pruner=ScalingLawPruner(wrapped=Spy(), min_size=SMALL[0]))
    fill(low, (*SMALL, LARGE))
    assert any(decide(low, begin(low, 1.0, size=SMALL[0]), [loss_at(SMALL[0], 1.0, t) for t in GRID]))


def test_start_up_and_warm_up(study: Study) -> None:
    values = [loss_at(LARGE, 1.0, t) for t in GRID]
    for pruner, at_least in (
        (ScalingLawPruner(n_startup_trials=16), None),
        (ScalingLawPruner(n_warmup_tokens=2**14), 2**14),
    ):
        study.pruner = pruner
        answers = decide(study, begin(study, 1.0), values)
        if at_least is None:
            assert not any(answers)
        else:
            assert GRID[len(answers) - 1] >= at_least


def test_two_sizes_bear_no_law() -> None:
    study = optuna.create_study(pruner=ScalingLawPruner())
    fill(study, SMALL[:2])
    assert not any(decide(study, begin(study, 1.0), [loss_at(LARGE, 1.0, t) for t in GRID]))


def test_learns_from_source_studies() -> None:
    source = optuna.create_study()
    fill(source)
    study = optuna.create_study(pruner=ScalingLawPruner(source_studies=[source]))
    assert any(decide(study, begin(study, 1.0), [loss_at(LARGE, 1.0, t) for t in GRID]))


def test_a_strategy_that_finds_its_lr_is_not_judged_by_where_it_starts(study: Study) -> None:
    trial = begin(study, 1.0, strategy="metaoptimize")  # type: ignore[arg-type]
    assert not any(decide(study, trial, [loss_at(LARGE, 1.0, t) for t in GRID]))


def test_other_names_and_shared_numbers() -> None:
    study = optuna.create_study(pruner=ScalingLawPruner(size="n", tokens=TOKENS, batch=512, lr="rate"))
    for size in SMALL:
        for lr in (3e-3, 1e-2, 2e-2, 5e-2, 0.2):
            study.add_trial(
                optuna.create_trial(
                    value=final_loss(size, lr),
                    params={"rate": lr, "n": size},
                    distributions={
                        "rate": optuna.distributions.FloatDistribution(1e-4, 1.0, log=True),
                        "n": optuna.distributions.FloatDistribution(1e4, 1e6),
                    },
                    intermediate_values={t: loss_at(size, lr, t) for t in GRID},
                )
            )
    study.enqueue_trial({"rate": 1.0, "n": LARGE})
    trial = study.ask()
    trial.suggest_float("rate", 1e-4, 1.0, log=True)
    trial.suggest_float("n", 1e4, 1e6)
    assert any(decide(study, trial, [loss_at(LARGE, 1.0, t) for t in GRID]))


def test_without_sizes_it_warns_once_and_says_what_to_set() -> None:
    study = optuna.create_study(pruner=ScalingLawPruner())
    trial = study.ask()
    trial.report(1.0, 10)
    with pytest.warns(StudyWarning, match=r"has no 'size' or no 'tokens'.*trial\.set_user_attr"):
        assert trial.should_prune() is False
    trial.report(1.0, 11)
    assert trial.should_prune() is False  # a second warning would be an error here


def test_steps_that_are_no_tokens_are_said(study: Study) -> None:
    trial = begin(study, 1.0)
    trial.report(3.0, 10 * TOKENS)
    with pytest.warns(StudyWarning, match="report tokens as the step"):
        assert trial.should_prune() is False


def test_a_size_that_changes_is_said_and_not_judged(study: Study) -> None:
    trial = begin(study, 1.0)
    trial.report(3.0, GRID[0])
    trial.should_prune()
    trial.set_user_attr("size", 2 * LARGE)
    trial.report(3.0, GRID[1])
    with pytest.warns(StudyWarning, match="one trial is one run"):
        assert trial.should_prune() is False


def test_a_parameter_and_an_attribute_that_disagree(study: Study) -> None:
    trial = begin(study, 0.5)
    trial.set_user_attr("lr", 0.1)
    trial.report(3.0, GRID[0])
    with pytest.warns(StudyWarning, match="keep one of them"):
        assert trial.should_prune() is False


def test_directions_may_not_contradict() -> None:
    source = optuna.create_study(direction="maximize")
    fill(source)
    study = optuna.create_study(pruner=ScalingLawPruner(source_studies=[source]))
    trial = begin(study, 1.0)
    trial.report(3.0, GRID[0])
    with pytest.raises(ValueError, match="is to maximize and study"):
        trial.should_prune()


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_direction_in_which_no_value_is_a_loss_is_said_once(direction: str) -> None:
    accuracies = optuna.create_study(direction="maximize" if direction == "minimize" else "minimize")
    fill(accuracies)
    study = optuna.create_study(direction=direction, pruner=ScalingLawPruner())
    study.add_trials(accuracies.trials)
    trial = begin(study, 1.0)
    trial.report(3.0, GRID[0])
    with pytest.warns(StudyWarning, match="no law can be fitted.*return the loss and minimize it"):
        assert trial.should_prune() is False
    assert trial.should_prune() is False  # a second warning would be an error here


def test_numpy_sizes_of_the_in_memory_storage_are_numbers(study: Study) -> None:
    trial = begin(study, 1.0, size=np.float32(LARGE), tokens=np.int64(TOKENS))
    assert any(decide(study, trial, [loss_at(LARGE, 1.0, t) for t in GRID]))


def test_a_duplicate_report_decides_nothing_anew(study: Study) -> None:
    lr, late = 0.03 * 10**-0.4, GRID[-2]
    hopeless = begin(study, lr)
    hopeless.report(1e6, late)
    assert hopeless.should_prune()
    trial = begin(study, lr)
    trial.report(loss_at(LARGE, lr, late), late)
    first = trial.should_prune()
    with pytest.warns(UserWarning, match="already reported"):
        trial.report(1e6, late)
    assert trial.should_prune() is first is False


def test_multi_objective_studies_are_refused() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"])
    with pytest.raises(ValueError, match="multi-objective"):
        ScalingLawPruner().prune(study, optuna.create_trial(values=[1.0, 2.0]))
    with pytest.raises(ValueError, match="multi-objective"):
        ScalingLawPruner(source_studies=[study])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_startup_trials": -1}, "n_startup_trials must be at least 0, got -1"),
        ({"n_warmup_tokens": -5}, "n_warmup_tokens must be at least 0"),
        ({"min_size": 0}, "min_size must be a number of parameters > 0"),
        (
            {"size": 0.0},
            "size must be the name of a parameter or user attribute or a positive number, got 0.0",
        ),
        ({"lr": 1e-3}, "lr must be the name"),
        ({"wrapped": optuna.pruners.HyperbandPruner()}, "wrap a SuccessiveHalvingPruner"),
        ({"wrapped": "median"}, "wrapped must be an optuna pruner"),
        ({"source_studies": ["my-study"]}, "source_studies must hold optuna studies, got str"),
    ],
)
def test_bad_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScalingLawPruner(**options)  # type: ignore[arg-type]


def test_after_five_stops_in_a_row_one_trial_is_let_finish() -> None:
    """A law that stops everything would never learn that it is wrong."""
    study = optuna.create_study(pruner=ScalingLawPruner())
    # of three sizes the law says that it may be wrong, and keeps everything
    fill(study, sizes=(2.5e3, 5e3, *SMALL))
    fill(study, sizes=(LARGE,), lrs=(1e-2,))
    hopeless = [5 * loss_at(LARGE, 1.0, t) for t in GRID]
    stopped = []
    for _ in range(8):
        trial = begin(study)
        decisions = decide(study, trial, hopeless)
        stopped.append(decisions[-1])
        if decisions[-1]:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, hopeless[-1])
    assert stopped == [True] * 5 + [False] + [True] * 2


def test_with_a_base_three_trials_of_one_size_are_enough() -> None:
    smaller = TrialTable.from_records(
        TrialRecord(size=s, tokens=TOKENS, batch=512, lr=lr, loss=final_loss(s, lr), trial=f"{s}-{lr}")
        for s in (2.5e3, 5e3, 1e4)
        for lr in (3e-3, 1e-2, 2e-2, 5e-2, 0.2)
    )
    hopeless = [5 * loss_at(LARGE, 1.0, t) for t in GRID]
    stopped = []
    for base in (None, smaller):
        study = optuna.create_study(pruner=ScalingLawPruner(base=base))
        fill(study, sizes=(SMALL[1],), lrs=(1e-2, 2e-2, 5e-2))
        stopped.append(any(decide(study, begin(study, 1.0), hopeless)))
    assert stopped == [False, True]
