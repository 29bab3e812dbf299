"""ScalingLawPruner: what it judges, by which evidence, and what it says where it cannot."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.pruners import BasePruner
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from pruner_trials import GRID, LARGE, SMALL, TOKENS, begin, decide, fill, final_loss, loss_at

from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_optuna import ScalingLawPruner, StudyWarning


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
