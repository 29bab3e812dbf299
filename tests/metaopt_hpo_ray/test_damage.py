"""Any one file of an experiment damaged: finished trials are kept, and the rest run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import toy_trial
from ray import tune

from metaopt_hpo_ray import restore, trial_table, tuner_configs
from metaopt_hpo_ray.journal import JOURNAL
from metaopt_hpo_ray.restoring import RestoreError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*damaged lines:metaopt_hpo_ray.TuneWarning"),
]

DAMAGED = [
    "tuner.pkl",
    "experiment_state-*.json",
    "callback-states-*.pkl",
    "basic-variant-state-*.json",
    JOURNAL,
    "*/result.json",
    "*/params.json",
    "*/params.pkl",
    "*/checkpoint_*/run.pt",
]
BASE = {"size": 100, "tokens": 512, "batch": toy_trial.BATCH, "lr": 1e-2, "seed": 0}


def train(config: dict[str, Any]) -> None:
    """The first trial finishes; the second is refused until a file says that it may run."""
    import toy_trial

    if config["part"] == 1 and not Path(config["gate"]).exists():
        toy_trial.train({**config, "die_at": 300, "deaths": 99})
    toy_trial.train(config)


@pytest.fixture(scope="module")
def interrupted(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an experiment in which one trial has finished and one has failed midway."""
    storage = tmp_path_factory.mktemp("damage")
    space = {
        **BASE,
        "part": tune.grid_search([0, 1]),
        "gate": str(storage / "gate"),
        "graves": str(storage / "graves"),
    }
    configs = tuner_configs(
        param_space=space, name="e", storage_path=str(storage), max_failures=0, run_options={"verbose": 0}
    )
    tune.Tuner(train, **configs).fit()
    (storage / "gate").touch()
    return storage


@pytest.mark.parametrize("pattern", DAMAGED)
def test_finished_trials_are_kept_and_the_rest_run(pattern: str, interrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "e"
    shutil.copytree(interrupted / "e", folder)
    before = trial_table(folder).frame.set_index("trial")
    damaged = sorted(folder.glob(pattern))
    assert damaged
    for path in damaged[-1:]:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] + b"\xff")
    results = restore(folder, train, resume_errored=True).fit()
    assert len(results) == 2
    assert results.num_errors == 0
    table = trial_table(folder).frame.set_index("trial")
    assert table.state.tolist() == ["complete"] * 2
    finished = before.index[before.state == "complete"]
    assert table.loss[finished].tolist() == pytest.approx(before.loss[finished].tolist())


def test_without_a_whole_copy_it_says_what_is_damaged(interrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "e"
    shutil.copytree(interrupted / "e", folder)
    (folder / "tuner.pkl").write_bytes(b"x")
    (folder / "metaopt-copy-tuner.pkl").unlink()
    with pytest.raises(RestoreError, match=r"tuner\.pkl is damaged"):
        restore(folder, train)
