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
from optuna.trial import Trial, TrialState
from pruner_trials import GRID, LARGE, SMALL, TOKENS, begin, decide, fill, final_loss, loss_at

from metaopt_hpo_optuna import ScalingLawPruner


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
