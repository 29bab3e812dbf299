"""TrialRun: reports, records, prunes, diverges, resumes, and what it leaves in every storage."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.pruners import BasePruner
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor, nn

from metaopt_hpo.strategies import make
from metaopt_hpo.training import CheckpointError, NoProgress
from metaopt_hpo.trials.record import token_grid
from metaopt_hpo_optuna import ScalingLawPruner, TrialRun, trial_table

TOKENS, BATCH = 4096, 16
SIZE = 8.0


class StopAt(BasePruner):
    """Stops a trial at its n-th report."""

    def __init__(self, report: int) -> None:
        self.report = report

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        return len(trial.intermediate_values) >= self.report


class Job:
    """Linear regression on data that are a function of the step, with dropout for a random state to restore."""

    def __init__(self, lr: float = 0.05) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 1), nn.Dropout(0.1))
        self.strategy = make("constant", lr=lr, warmup=0.0, base="sgd", weight_decay=0.0, max_grad_norm=None)
        self.evaluations = 0

    def loss(self, step: int) -> Tensor:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(BATCH, 8, generator=g)
        return ((self.model(x) - x.sum(1, keepdim=True)) ** 2).mean() + 1.0

    def evaluate(self) -> float:
        self.evaluations += 1
        g = torch.Generator().manual_seed(10**6)
        x = torch.randn(64, 8, generator=g)
        return float(((self.model(x) - x.sum(1, keepdim=True)) ** 2).mean() + 1.0)

    def run(self, trial: optuna.trial.BaseTrial, **options: object) -> TrialRun:
        settings: dict[str, object] = {
            "size": SIZE,
            "tokens": TOKENS,
            "batch": BATCH,
            "evaluate": self.evaluate,
        }
        return TrialRun(trial, self.model, self.strategy, **{**settings, **options})  # type: ignore[arg-type]


def train(
    trial: optuna.trial.BaseTrial, die_at: int | None = None, lr: float = 0.05, **options: object
) -> float:
    job = Job(lr)
    with job.run(trial, **options) as run:
        for step in run:
            if step == die_at:
                raise SystemExit  # as a killed worker: nothing more is told
            run.step(job.loss(step))
    return run.value


def test_reports_on_the_shared_grid_with_tokens_as_steps(storage: BaseStorage) -> None:
    study = optuna.create_study(storage=storage)
    study.optimize(train, n_trials=1)
    trial = study.trials[0]
    assert trial.intermediate_values.keys() <= set(token_grid(TOKENS, start=BATCH, stride=1))
    assert 20 < len(trial.intermediate_values) <= 100
    assert trial.value == trial.intermediate_values[TOKENS]
    attributes = trial.user_attrs
    assert {k: attributes[k] for k in ("size", "tokens", "batch", "lr", "strategy")} == {
        "size": 8.0, "tokens": 4096, "batch": 16, "lr": 0.05, "strategy": "constant",
    }  # fmt: skip
    (record,) = trial_table(study).records()
    assert (record.state, record.tokens, record.cost) == ("complete", TOKENS, 6 * SIZE * TOKENS)
    assert record.curve is not None
    assert dict(zip(record.curve.tokens, record.curve.loss, strict=True)) == trial.intermediate_values


def test_the_pruner_stops_it_and_the_record_says_why() -> None:
    study = optuna.create_study(pruner=StopAt(3))
    study.optimize(train, n_trials=1)
    trial = study.trials[0]
    assert trial.state == TrialState.PRUNED
    assert len(trial.intermediate_values) == 3
    (record,) = trial_table(study).records()
    assert record.state == "pruned"
    assert "StopAt stopped it" in record.reason == trial.user_attrs["metaopt:reason"]
    assert record.cost == pytest.approx(6 * SIZE * record.tokens)
    assert record.tokens < TOKENS == record.target_tokens


def test_a_run_that_learns_nothing_says_so_in_its_attributes() -> None:
    study = optuna.create_study()
    with pytest.warns(NoProgress):
        study.optimize(lambda trial: train(trial, lr=1e-9), n_trials=1)
    (record,) = trial_table(study).records()
    assert record.state == "complete"
    assert "made no progress" in record.reason == study.trials[0].user_attrs["metaopt:reason"]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_diverged_run_ends_pruned_with_a_finite_penalty(direction: str) -> None:
    study = optuna.create_study(direction=direction)

    def objective(trial: optuna.Trial) -> float:
        job = Job(lr=10.0 if trial.number == 1 else 0.05)
        sign = 1.0 if direction == "minimize" else -1.0
        with job.run(trial, evaluate=lambda: sign * job.evaluate()) as run:
            for step in run:
                run.step(job.loss(step))
        return run.value

    study.optimize(objective, n_trials=3)
    good, bad, after = study.trials
    assert (good.state, bad.state, after.state) == (
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.COMPLETE,
    )
    assert bad.value is not None
    assert math.isfinite(bad.value)
    assert bad.value > good.value if direction == "minimize" else bad.value < good.value  # type: ignore[operator]
    assert study.best_trial.number in (0, 2)
    assert "loss" in bad.user_attrs["metaopt:reason"]
    assert trial_table(study).records()[1].state == "diverged"
    assert trial_table(study).records()[0].direction == direction


def test_an_error_is_raised_and_recorded() -> None:
    study = optuna.create_study()

    def objective(trial: optuna.Trial) -> float:
        job = Job()
        with job.run(trial) as run:
            for step in run:
                if step == 100:
                    raise MemoryError("no room")
                run.step(job.loss(step))
        return run.value

    study.optimize(objective, n_trials=1, catch=(MemoryError,))
    (record,) = trial_table(study).records()
    assert (record.state, record.reason) == ("failed", "MemoryError: no room")
    assert record.cost == pytest.approx(6 * SIZE * 100 * BATCH)


def undisturbed() -> dict[int, float]:
    study = optuna.create_study()
    study.optimize(train, n_trials=1)
    return study.trials[0].intermediate_values


@pytest.mark.parametrize("inherit", [False, True])
@pytest.mark.parametrize("die_at", [1, 97, 200])
def test_a_retried_trial_goes_on_from_its_checkpoint(tmp_path: Path, die_at: int, inherit: bool) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 's.sqlite'}")
    study = optuna.create_study(storage=storage, study_name="a/b")
    trial = study.ask()
    with pytest.raises(SystemExit):
        train(trial, die_at=die_at, checkpoint=folder)
    # what the retry callback does when the heartbeat has stopped
    study.tell(trial, state=TrialState.FAIL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        retry = optuna.storages.RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=inherit)
    retry(study, study.trials[0])
    taken: list[int] = []

    def again(trial: optuna.Trial) -> float:
        job = Job()
        with job.run(trial, checkpoint=folder) as run:
            taken.append(run.steps_taken)
            for step in run:
                run.step(job.loss(step))
        return run.value

    study.optimize(again, n_trials=1)
    retried = study.trials[1]
    assert retried.state == TrialState.COMPLETE
    assert retried.intermediate_values == undisturbed()
    assert taken[0] > 0 or die_at == 1
    assert len(list(folder.glob("a_b-trial-*.pt"))) == 1
    records = trial_table(study).records()
    assert [r.state for r in records] == ["failed", "complete"]


def test_no_report_is_made_twice() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study = optuna.create_study()
        study.optimize(train, n_trials=2)
        again = study.ask()
        with pytest.raises(SystemExit):
            train(again, die_at=60)
        train(again)  # without a checkpoint it begins anew, and its first points are there already
    assert study.trials[0].intermediate_values == study.trials[1].intermediate_values
    assert study.trials[2].intermediate_values == study.trials[0].intermediate_values


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.pt"
    study = optuna.create_study()
    trial = study.ask()
    with pytest.raises(SystemExit):
        train(trial, die_at=60, checkpoint=file)
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(CheckpointError, match="No space left on device"):
            train(trial, checkpoint=file)
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]
    train(trial, checkpoint=file)
    assert study.trials[-1].intermediate_values == undisturbed()


def test_another_trial_does_not_go_on_from_a_trials_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    study = optuna.create_study(study_name="s")
    train(study.ask(), checkpoint=file)
    with pytest.raises(CheckpointError, match="trial '0' instead of '1'"):
        train(study.ask(), checkpoint=file)
    with pytest.raises(CheckpointError, match="study 's' instead of 't'"):
        train(optuna.create_study(study_name="t").ask(), checkpoint=file)


def test_attributes_that_disagree_are_an_error() -> None:
    trial = optuna.create_study().ask()
    trial.set_user_attr("size", 9.0)
    with pytest.raises(
        ValueError, match=r"already has the user attribute size=9\.0, and this run has size=8\.0"
    ):
        Job().run(trial)
    trial = optuna.create_study().ask()
    trial.suggest_float("lr", 0.2, 0.2)
    with pytest.raises(ValueError, match=r"parameter lr=0\.2"):
        Job().run(trial)


def test_multi_objective_studies_and_missing_trials_are_refused() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"])
    with pytest.raises(ValueError, match="multi-objective"):
        Job().run(study.ask())
    with pytest.raises(ValueError, match="trial is None"):
        Job().run(None)  # type: ignore[arg-type]


def test_a_fixed_trial_runs_to_its_end() -> None:
    assert train(optuna.trial.FixedTrial({})) == undisturbed()[TOKENS]


def test_ask_and_tell() -> None:
    study = optuna.create_study(pruner=StopAt(2))
    trial = study.ask()
    with pytest.raises(optuna.TrialPruned):
        train(trial)
    study.tell(trial, state=TrialState.PRUNED)
    assert study.trials[0].value is not None


def test_numpy_values_reach_every_storage_as_plain_ones(storage: BaseStorage) -> None:
    import numpy as np

    study = optuna.create_study(storage=storage)
    trial = study.ask()
    train(trial, size=np.float32(8), tokens=np.int64(TOKENS), batch=np.float64(BATCH))
    attributes = study.trials[0].user_attrs
    assert [type(attributes[k]) for k in ("size", "tokens", "batch")] == [float, int, float]


def worker(rank: int, folder: str, results: Any) -> None:
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    out: list[object] = []
    for pruner, lr in (
        (StopAt(4), 0.05),
        (optuna.pruners.NopPruner(), 0.05),
        (optuna.pruners.NopPruner(), 50.0),
    ):
        study = optuna.create_study(pruner=pruner) if rank == 0 else None
        trial = None if study is None else study.ask()
        job = Job(lr)
        job.model = DistributedDataParallel(job.model)  # type: ignore[assignment]
        ended = "complete"
        try:
            # each rank evaluates something else: rank 0's number must be the one that counts
            with job.run(
                trial,
                evaluate=lambda job=job: job.evaluate() + 0.01 * rank,
                checkpoint=f"{folder}/{len(out)}.pt",
            ) as run:
                for step in run:
                    run.step(job.loss(2 * step + rank))
        except optuna.TrialPruned as pruned:
            ended = str(pruned)
        out.append((ended, run.steps_taken, run.loss))
    results.put((rank, out))
    results.close()
    results.join_thread()  # what was put is through
    dist.barrier()
    os._exit(0)  # on a busy machine torch's own threads abort an orderly exit now and then


@pytest.mark.slow
def test_under_ddp_rank_0_decides_and_all_ranks_stop_together(tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=worker, args=(r, str(tmp_path), results)) for r in range(2)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=90) for _ in processes)
    for process in processes:
        process.join(30)
    assert repr(found[0]) == repr(found[1])
    pruned, complete, diverged = found[0]
    assert "StopAt stopped it" in pruned[0]
    assert complete[0] == "complete"
    assert "loss" in diverged[0]


def test_a_large_run_without_a_chance_is_never_started() -> None:
    study = optuna.create_study(pruner=ScalingLawPruner())
    for size in (1.0, 2.0, 4.0):
        best = 0.05 * size**-0.4
        for factor in (0.1, 0.3, 1.0, 3.0, 10.0):
            loss = 2.0 + size**-0.3 + 0.2 * math.log(factor) ** 2
            study.add_trial(
                optuna.create_trial(
                    value=loss,
                    params={"lr": best * factor},
                    distributions={"lr": optuna.distributions.FloatDistribution(1e-6, 10.0)},
                    user_attrs={"size": size, "tokens": TOKENS, "batch": BATCH},
                )
            )

    def objective(trial: optuna.Trial, lr: float) -> float:
        job = Job(lr)
        job_run = job.run(trial)
        with job_run as run:
            for step in run:
                run.step(job.loss(step))
        return run.value

    study.optimize(lambda trial: objective(trial, 1e-6), n_trials=1)
    study.optimize(lambda trial: objective(trial, 0.05 * SIZE**-0.4), n_trials=1)
    hopeless, hopeful = study.trials[-2:]
    assert hopeless.state == TrialState.PRUNED
    assert not hopeless.intermediate_values
    record = trial_table(study).records()[-2]
    assert (record.cost, record.tokens, record.state) == (0.0, 0.0, "pruned")
    assert record.reason.startswith("not started: ")
    assert hopeful.intermediate_values
