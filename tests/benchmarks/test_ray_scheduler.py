"""What the scheduler costs, beside Tune's own in the same run; and what it saves on a simulated cluster.

    pytest tests/benchmarks/test_ray_scheduler.py -s

Times are printed and never asserted. The saving is deterministic: it is the table of docs/ray-tune.md.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.fs
import pytest

pytest.importorskip("ray.tune", reason='Ray is not installed (pip install "metaopt-hpo[ray]")')
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "metaopt_hpo_ray"))

from ray import cloudpickle
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from stub_cluster import Curve, StubCluster, stub_trial, world_curve

from metaopt_hpo.comparison.objective import Configuration
from metaopt_hpo.comparison.table_objective import TableObjective
from metaopt_hpo.trials.table import TrialTable
from metaopt_hpo_ray import JournalCallback, ScalingLawScheduler
from metaopt_hpo_ray.journal import JOURNAL

SIZES = tuple(1e6 * 2**k for k in range(6))
POINTS = 12


def asha() -> TrialScheduler:
    """Rungs at 3, 9, 27 and 81 % of a run: sizes and tokens differ, so fractions are what compares."""
    return ASHAScheduler(time_attr="percent", max_t=100, grace_period=3, reduction_factor=3)


def law(background: bool = False) -> TrialScheduler:
    scheduler = ScalingLawScheduler(background=background)
    JournalCallback(scheduler)
    return scheduler


def trials(count: int, seed: int = 0) -> list[Trial]:
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        size = SIZES[int(rng.integers(len(SIZES)))]
        lr, noise = float(10 ** rng.uniform(-4, -1)), float(0.003 * rng.standard_normal())
        trial = stub_trial(f"t{i:05d}", size=size, tokens=20 * size, batch=1e4, lr=lr)
        trial.curve = world_curve(size, 20 * size, lr, noise, POINTS)
        out.append(trial)
    return out


def curve_of(trial: Trial) -> Curve:
    return trial.curve  # type: ignore[no-any-return]


class Timed:
    """Mean microseconds of a function's calls, of this thread's processor time: whatever else the machine does."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.seconds, self.calls = 0.0, 0

    def __call__(self, *args: Any) -> Any:
        begin = time.thread_time()
        result = self._function(*args)
        self.seconds += time.thread_time() - begin
        self.calls += 1
        return result

    @property
    def mean(self) -> float:
        return 1e6 * self.seconds / self.calls


def simulate(scheduler: TrialScheduler, swept: list[Trial], slots: int) -> tuple[StubCluster, Timed, Timed]:
    scheduler.set_search_properties("loss", "min")
    report, choose = Timed(scheduler.on_trial_result), Timed(scheduler.choose_trial_to_run)
    scheduler.on_trial_result, scheduler.choose_trial_to_run = report, choose  # type: ignore[method-assign]
    cluster = StubCluster(scheduler, curve_of, slots=slots)
    for trial in swept:
        cluster.add(trial)
    cluster.run()
    return cluster, report, choose


@pytest.mark.parametrize("count", [100, 1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_hooks(count: int) -> None:
    print(f"\n{count} trials: mean µs of on_trial_result, choose_trial_to_run")
    for name, make in (("fifo", FIFOScheduler), ("asha", asha), ("law", lambda: law(background=True))):
        cluster, report, choose = simulate(make(), trials(count), min(count, 256))
        print(f"  {name:5} {report.mean:8.1f} {choose.mean:8.1f}")
        assert all(t.is_finished() for t in cluster.get_trials())


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_scale(count: int, tmp_path: Path) -> None:
    """Stub trials on 1,000 slots with a journal: hooks, snapshot, memory, journal and restore."""
    scheduler = ScalingLawScheduler(background=True)
    keeper = JournalCallback(scheduler)
    keeper.open_journal(at(tmp_path))
    swept = trials(count)
    report = scheduler.on_trial_result

    def kept(controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        decision = report(controller, trial, result)
        keeper.flush()
        return decision

    scheduler.on_trial_result = kept  # type: ignore[method-assign]
    cluster, told, choose = simulate(scheduler, swept, 1000)
    snapshot = Timed(lambda: cloudpickle.dumps(keeper.get_state()))
    for _ in range(20):
        size = len(snapshot())
    keeper.on_experiment_end(cluster.get_trials())
    journal = (tmp_path / JOURNAL).stat().st_size
    again = JournalCallback(ScalingLawScheduler(background=False))
    again.set_state(keeper.get_state())
    restore = Timed(lambda: again.open_journal(at(tmp_path)))
    restore()
    events = sum(len(e.points) for e in again.book.entries.values())
    print(f"\n{count} trials on 1,000 slots, {events} reports")
    print(f"  µs of on_trial_result, journal included, and choose: {told.mean:.0f}, {choose.mean:.0f}")
    print(f"  snapshot {snapshot.mean / 1e3:.2f} ms, {size} bytes; journal {journal / 1e6:.1f} MB")
    print(f"  restore {restore.mean / 1e6:.2f} s; peak memory of the process {peak():.0f} MB")
    assert again.book.to_state().keys() == scheduler.book.to_state().keys()
    assert len(again.book.entries) == count


def at(folder: Path) -> Any:
    return SimpleNamespace(
        storage_filesystem=pyarrow.fs.LocalFileSystem(),
        experiment_fs_path=str(folder),
        experiment_driver_staging_path=str(folder),
    )


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def best_losses(cluster: StubCluster, *, finished: bool) -> dict[tuple[float, float], float]:
    """(size, tokens) → lowest final loss, of all trials or of those that were run to their end."""
    out: dict[tuple[float, float], float] = {}
    for trial in cluster.get_trials():
        cell, loss = (trial.config["size"], trial.config["tokens"]), trial.curve[-1][1]
        if not finished or trial.last_result.get("tokens_seen") == trial.config["tokens"]:
            out[cell] = min(loss, out.get(cell, math.inf))
    return out


def replayed(name: str, count: int, seed: int = 0) -> list[Trial]:
    """Rows of a table of real runs as trials, in random order, with what the table knows of their curves.

    Neither table has curves within a run. The lower fidelities are its cells: the real losses of the same size,
    learning rate and batch at fewer tokens (between measured runs interpolated, never beyond them). Those runs
    were annealed, which flatters whoever stops early.
    """
    path = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "scaling" / name
    if not path.exists():
        pytest.skip(f"no {path.name} beside the repository, in ../shared/data/scaling")
    columns = TABLES[name]
    rows = pd.read_csv(path).rename(columns=columns)
    if "seed" in rows:
        rows = rows.drop(columns="seed")
    rows["batch"] *= 2048
    rows = rows[[*columns.values()]].dropna()
    objective = TableObjective(TrialTable.from_frame(rows))
    out = []
    for i, row in enumerate(rows.sample(min(count, len(rows)), random_state=seed).to_dict("records")):
        loss = row.pop("loss")
        run = objective.run(Configuration(**row))
        trial = stub_trial(f"t{i:05d}", **row)
        assert run.curve is not None
        trial.curve = [*zip(run.curve.tokens[:-1], run.curve.loss[:-1], strict=True), (row["tokens"], loss)]
        out.append(trial)
    return out


TABLES = {
    "steplaw_upto_430m.csv": {
        "lr": "lr",
        "bsz": "batch",
        "data_size": "tokens",
        "non_embedding_param_size": "size",
        "lm_loss": "loss",
    },
    "openeurollm_upto_600m.csv": {"lr": "lr", "gbsz": "batch", "D": "tokens", "N": "size", "loss": "loss"},
}
WORLDS: dict[str, Callable[[], list[Trial]]] = {
    "synthetic": lambda: trials(1000),
    "step law": lambda: replayed("steplaw_upto_430m.csv", 1000),
    "openeurollm": lambda: replayed("openeurollm_upto_600m.csv", 1000),
}


@pytest.mark.parametrize("world", WORLDS)
def test_a_thousand_trials_on_256_slots(world: str) -> None:
    """The saving against FIFO and ASHA; a deterministic simulation. OpenEuroLLM has 687 trials."""
    sweep = WORLDS[world]
    makers = (("fifo", FIFOScheduler), ("asha", asha), ("law", law))
    runs = {name: simulate(make(), sweep(), 256)[0] for name, make in makers}
    fifo = runs["fifo"]
    print(f"\n{world}: FLOPs (GPU-hours), makespan, loss over the best of all trials of a cell: mean, worst")
    for name, cluster in runs.items():
        best, found = best_losses(cluster, finished=False), best_losses(cluster, finished=True)
        lost = [found.get(cell, math.inf) / best[cell] - 1 for cell in best]
        print(f"{name:5} {cluster.work / fifo.work:5.2f} {cluster.time / fifo.time:5.2f}", end=" ")
        print(f"{sum(lost) / len(lost):9.2%} {max(lost):9.2%}")
    assert runs["law"].work < fifo.work
    assert runs["law"].time <= fifo.time
