"""End to end on a real cluster: processes are killed, checkpoints vanish, and nothing is lost or counted twice."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import toy_trial
from ray import tune

from metaopt_hpo.training.run import TrainingRun
from metaopt_hpo.trials.logbook import Logbook
from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo_ray import ScalingLawScheduler, trial_table, tuner_configs
from metaopt_hpo_ray.journal import JOURNAL
from metaopt_hpo_ray.journal_callback import FORGOTTEN

TOKENS = 1024
BASE = {"size": 100, "tokens": TOKENS, "batch": toy_trial.BATCH, "lr": 1e-2, "seed": 0}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def undisturbed() -> TrialRecord:
    """The same run without Ray."""
    run, loss = toy_trial.build(BASE, TrainingRun)
    with run:
        for step in run:
            run.step(loss(step))
    return run.record()


@pytest.fixture(scope="module")
def killed(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrialRecord]:
    """One experiment of trials with different fates, as records by name."""
    storage = tmp_path_factory.mktemp("ray")
    common = {**BASE, "graves": str(storage / "graves"), "storage": str(storage)}
    fates: dict[str, dict[str, Any]] = {
        "calm": {},
        "killed": {"die_at": 700},
        "doomed": {"die_at": 300, "deaths": 9},
        "emptied": {"die_at": 700, "forget": "file"},
        "robbed": {"die_at": 700, "forget": "folder"},
        "shortened": {"die_at": 700, "forget": "last"},
        "diverged": {"nan_at": 300},
    }
    space = {**common, "fate": tune.grid_search(list(fates))}
    configs = tuner_configs(
        param_space={**space, "lr": 1e-2},
        scheduler=ScalingLawScheduler(),
        name="faults",
        storage_path=str(storage),
        max_failures=2,
        reuse_actors=True,
        run_options={"verbose": 0},
    )

    def train(config: dict[str, Any]) -> None:
        import toy_trial

        toy_trial.train({**config, **fates[config["fate"]]})

    tune.Tuner(train, **configs).fit()
    table = trial_table(str(storage / "faults"))
    return {str(r.params["fate"]): r for r in table.records()}


def curve(record: TrialRecord) -> list[tuple[float, float]]:
    assert record.curve is not None
    return list(zip(record.curve.tokens, record.curve.loss, strict=True))


def test_a_trial_under_ray_is_the_run_itself(
    killed: dict[str, TrialRecord], undisturbed: TrialRecord
) -> None:
    calm = killed["calm"]
    assert curve(calm) == curve(undisturbed)
    assert (calm.state, calm.cost, calm.loss) == ("complete", undisturbed.cost, undisturbed.loss)


def test_a_killed_worker_goes_on_exactly_and_pays_once_more(
    killed: dict[str, TrialRecord], undisturbed: TrialRecord
) -> None:
    record = killed["killed"]
    assert record.state == "complete"
    assert curve(record) == curve(undisturbed)
    assert undisturbed.cost <= record.cost < 1.4 * undisturbed.cost


def test_three_kills_exhaust_the_retries_and_touch_no_other_trial(killed: dict[str, TrialRecord]) -> None:
    assert killed["doomed"].state == "failed"
    assert killed["doomed"].cost > 0
    assert [killed[f].state for f in ("calm", "killed", "emptied")] == ["complete"] * 3


def test_deleted_checkpoints_start_the_trial_again_say_so_and_count_both(
    killed: dict[str, TrialRecord], undisturbed: TrialRecord
) -> None:
    """The folders, or what is in them: Tune would refuse the first, and the second would go unsaid."""
    for fate in ("emptied", "robbed"):
        record = killed[fate]
        assert record.state == "complete"
        assert curve(record) == curve(undisturbed)
        assert record.cost > 1.5 * undisturbed.cost
        assert "no older one is kept; it started again at its first step" in record.reason


def test_an_older_checkpoint_is_taken_where_the_last_was_deleted(
    killed: dict[str, TrialRecord], undisturbed: TrialRecord
) -> None:
    record = killed["shortened"]
    assert record.state == "complete"
    assert curve(record) == curve(undisturbed)
    assert undisturbed.cost < record.cost < 1.5 * undisturbed.cost
    assert "it went on from the older" in record.reason


def test_divergence_ends_a_trial_without_a_retry(killed: dict[str, TrialRecord]) -> None:
    record = killed["diverged"]
    assert record.state == "diverged"
    assert "nan" in record.reason or "not finite" in record.reason
    assert math.isnan(record.loss)
    assert record.tokens < TOKENS


def test_a_killed_driver_is_restored_with_the_state_it_had(cluster: str, tmp_path: Path) -> None:
    here = Path(__file__).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TUNE_GLOBAL_CHECKPOINT_S": "1"}
    driver = subprocess.Popen(
        [sys.executable, str(here / "driver.py"), cluster, str(tmp_path)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    folder = tmp_path / "killed"
    journal = folder / JOURNAL
    try:
        _wait_for(lambda: _ended(journal) >= 3 and any(folder.glob("searcher-state*")), driver)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    text = journal.read_text()
    before = Logbook.replay(text.splitlines())
    ended = {k for k, e in before.entries.items() if e.closed}

    tuner = tune.Tuner.restore(str(folder), toy_trial.train)
    results = tuner.fit()

    lines = journal.read_text().splitlines()
    assert lines[: before.events + 1] == text.splitlines()[: before.events + 1], "it is only ever appended to"
    after = Logbook.replay(lines)
    # what Tune's snapshot, a second older, did not know of has failed, and is counted
    forgotten = {k for k, e in after.entries.items() if e.reason == FORGOTTEN}
    assert len(results) == 8
    unknown = set(after.entries) - {str(r.metrics["trial_id"]) for r in results if r.metrics}
    assert forgotten <= unknown <= forgotten | ended
    assert forgotten <= set(before.entries) <= set(after.entries)
    assert {after.entries[k].state for k in set(after.entries) - forgotten} <= {"complete", "pruned"}
    for (
        key
    ) in ended:  # nothing that had ended was run again, but for its last moment where Tune forgot the end
        assert after.entries[key].cost <= before.entries[key].cost * 1.5
        assert after.entries[key].points == before.entries[key].points
    assert all(e.closed for e in after.entries.values())
    assert trial_table(results).cost() == trial_table(str(folder)).cost() > 0


def _ended(journal: Path) -> int:
    if not journal.exists():
        return 0
    book = Logbook.replay(journal.read_text().splitlines())
    return sum(e.closed for e in book.entries.values())


def _wait_for(condition: Any, process: subprocess.Popen[bytes], seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            assert process.stderr is not None
            pytest.fail(f"the driver ended by itself: {process.stderr.read().decode()[-2000:]}")
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("the driver did not get far enough in time")
