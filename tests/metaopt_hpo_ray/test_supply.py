"""Supply: an endless one is bounded, a searcher is asked for little at once, and damaged files stop nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle, tune
from ray.tune.callback import CallbackList
from ray.tune.experiment import Experiment, Trial
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Searcher
from ray.tune.search.optuna import OptunaSearch

from metaopt_hpo_ray import JournalCallback, ScalingLawScheduler, ScalingLawSearch, tuner_configs
from metaopt_hpo_ray.supply import ENDLESS, SUGGESTED, make_supply

SPACE = {"size": tune.choice([1e6, 2e6]), "tokens": 64, "batch": 8, "lr": tune.loguniform(1e-3, 1e-1)}


class Counted(Searcher):
    """A searcher of somebody else's, with a space of its own."""

    asked = 0

    def suggest(self, trial_id: str) -> dict[str, Any]:
        self.asked += 1
        return {"size": 1e6, "tokens": 64, "batch": 8, "lr": 0.01 * self.asked}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing is learnt."""

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text("counted")

    def restore(self, checkpoint_path: str) -> None:
        if Path(checkpoint_path).read_text() != "counted":
            raise ValueError("no state of mine")


def supply(search_alg: Any, tmp_path: Path, num_samples: int, limit: int | None = None) -> Any:
    made, left = make_supply(search_alg, limit, metric="loss", mode="min", space=SPACE)
    assert left is None
    made.add_configurations(
        [Experiment("e", train, config=SPACE, num_samples=num_samples, storage_path=str(tmp_path))]
    )
    return made


def train(config: dict[str, Any]) -> None:
    """Never run."""


def drawn(made: Any, most: int = 1000) -> list[Trial]:
    """What Tune's loop draws while a scheduler holds everything back."""
    out: list[Trial] = []
    while len(out) < most and (trial := made.next_trial()) is not None:
        trial.set_status(Trial.PAUSED)
        out.append(trial)
    return out


@pytest.mark.parametrize(
    ("search_alg", "num_samples", "most"),
    [
        (None, sys.maxsize, ENDLESS),
        (BasicVariantGenerator(random_state=3), sys.maxsize, ENDLESS),
        (None, 500, 500),
        (Counted(), sys.maxsize, SUGGESTED),
        (Counted(), 40, SUGGESTED),
        (ConcurrencyLimiter(Counted(), 3), sys.maxsize, 3),
    ],
)
def test_held_trials_bound_what_is_drawn(
    search_alg: Any, num_samples: int, most: int, tmp_path: Path
) -> None:
    made = supply(search_alg, tmp_path, num_samples)
    trials = drawn(made)
    assert len(trials) == most
    if most < num_samples and not isinstance(search_alg, ConcurrencyLimiter):
        for trial in trials[:5]:
            trial.set_status(Trial.RUNNING)
        assert len(drawn(made)) == 5, "those that run make room"


def test_limits_are_kept_and_contradictions_named(tmp_path: Path) -> None:
    assert len(drawn(supply(None, tmp_path, 50, limit=4))) == 4
    assert len(drawn(supply(Counted(), tmp_path, 50, limit=2))) == 2
    with pytest.raises(ValueError, match="give one of the two"):
        supply(ConcurrencyLimiter(Counted(), 3), tmp_path, 50, limit=2)


@pytest.mark.parametrize(
    "search_alg",
    [
        ConcurrencyLimiter(
            ScalingLawSearch(candidates=[(1e4, 1e6)], lr=(1e-3, 1e-1), batch=8), max_concurrent=2
        ),
        OptunaSearch(
            space=lambda trial: {"tokens": 1e6, "size": trial.suggest_int("size", 1, 2)},
            metric="loss",
            mode="min",
        ),
        OptunaSearch(space={"size": tune.choice([1, 2])}, metric="loss", mode="min"),
        Counted(),
        "optuna",
    ],
    ids=["limited", "define-by-run", "own space", "custom", "by name"],
)
@pytest.mark.parametrize("num_samples", [-1, 4])
def test_any_searcher_with_a_space_of_its_own_is_wired(search_alg: Any, num_samples: int) -> None:
    configs = tuner_configs(param_space={}, search_alg=search_alg, num_samples=num_samples)
    searcher = configs["tune_config"].search_alg.searcher
    if search_alg != "optuna":  # it gets its space from the Tuner
        assert searcher.suggest(f"t{num_samples}")


def test_a_searcher_that_could_suggest_nothing_is_refused_at_wiring() -> None:
    with pytest.raises(ValueError, match="metric='loss' and mode='min' too"):
        tuner_configs(param_space={}, search_alg=OptunaSearch(space={"size": tune.choice([1, 2])}))


def test_an_endless_supply_without_it_is_refused_at_wiring() -> None:
    scheduler = ScalingLawScheduler()
    with pytest.raises(ValueError, match="tuner_configs"):
        scheduler.set_search_properties("loss", "min", num_samples=sys.maxsize)
    JournalCallback(scheduler)
    assert scheduler.set_search_properties("loss", "min", num_samples=sys.maxsize)


@pytest.mark.parametrize("search_alg", [None, Counted()], ids=["variants", "searcher"])
def test_a_damaged_file_of_tunes_is_moved_aside_and_an_older_one_taken(
    search_alg: Any, tmp_path: Path
) -> None:
    first = supply(search_alg, tmp_path, 40)
    drawn(first, most=3)
    first.save_to_dir(str(tmp_path), "1")
    drawn(first, most=2)
    first.save_to_dir(str(tmp_path), "2")
    (tmp_path / CallbackList.CKPT_FILE_TMPL.format("2")).write_bytes(
        cloudpickle.dumps({0: {"a": "b" * 100}})[:50]
    )
    newest = tmp_path / type(first).CKPT_FILE_TMPL.format("2")
    newest.write_bytes(newest.read_bytes()[:-40])
    for state in tmp_path.glob("searcher-state*"):
        state.write_text("damaged")
    again = supply(search_alg, tmp_path, 40)
    assert again.has_checkpoint(str(tmp_path))
    again.restore_from_dir(str(tmp_path))
    assert {p.name for p in tmp_path.glob("damaged-*")} == {
        f"damaged-{newest.name}",
        f"damaged-{CallbackList.CKPT_FILE_TMPL.format('2')}",
    }
    assert len(drawn(again, most=100)) == (37 if search_alg is None else SUGGESTED)
