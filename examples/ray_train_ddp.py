"""One model over two workers with DDP, as Tune trials: `TrialRun` inside Ray Train's workers.

    python examples/ray_train_ddp.py

Tune runs one light function a trial; it starts a `TorchTrainer`, whose workers train together. Rank 0's held-out
loss counts, rank 0 saves, and all ranks stop together. With GPUs set `use_gpu=True` and the resources they need.
One trial finds its own lr; beside it AdamW runs at torch's default lr, or at the one that is given.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model
from ray.tune.integration.ray_train import TuneReportCallback

from metaopt_hpo.workloads import TextLM
from metaopt_hpo_ray import TrialRun, build_strategy, trial_table, tuner_configs

WORKERS = 2
CPUS = 0.25
"""Of each worker and of the trial that waits for them, so that workers which are started again find room on two CPUs
while the first are being put away. Give a worker with a GPU what it needs."""


def worker(config: dict[str, Any]) -> None:
    """One rank: its part of every batch, the same model."""
    rank = ray.train.get_context().get_world_rank()
    workload = TextLM(width=config["width"], sequences=config["batch"] // 64)
    part = workload.with_batch(workload.batch // WORKERS)
    bare = workload.model(config["seed"])
    model = prepare_model(bare)
    run = TrialRun(
        config,
        model,
        build_strategy(config),
        size=workload.size,
        tokens=config["tokens"],
        batch=workload.batch,
        evaluate=lambda: workload.held_out_loss(bare),
        flops_per_token=workload.flops_per_token,
        workload=workload.name,
        report_stride=4,
    )
    with run:
        for step in run:
            run.step(*part.losses(model, step, seed=config["seed"] * WORKERS + rank, parts=1))


def trial(config: dict[str, Any]) -> None:
    """What Tune runs: a driver of its own for Ray Train."""
    name = f"train-{tune.get_context().get_trial_id()}"
    TorchTrainer(
        worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=WORKERS, resources_per_worker={"CPU": CPUS}),
        run_config=RunConfig(
            name=name,  # a retried trial finds its checkpoints under the same name
            storage_path=config["storage"],
            callbacks=[TuneReportCallback()],
            failure_config=FailureConfig(max_failures=1),
        ),
    ).fit()


def main() -> tuple[float, float]:
    """Return the loss of (ours, AdamW's) after printing both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--storage", default=str(Path("results/ray-ddp").resolve()))
    parser.add_argument("--tokens", type=int, default=2**17)
    parser.add_argument("--lr", type=float, default=1e-3, help="of the plain trial")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    space = {
        "size": TextLM(width=16).size,
        "width": 16,
        "tokens": args.tokens,
        "batch": 1024,
        "seed": 0,
        "storage": args.storage,
        "strategy": tune.grid_search(["metaoptimize", "constant"]),
        "lr": tune.sample_from(lambda spec: args.lr if spec.config["strategy"] == "constant" else None),
    }
    configs = tuner_configs(
        param_space=space, name="ddp", storage_path=args.storage, max_concurrent_trials=1, max_failures=1
    )
    # the trial itself only waits for its workers
    tuner = tune.Tuner(tune.with_resources(trial, {"cpu": CPUS}), **configs)
    table = trial_table(tuner.fit())
    print(
        table.frame[["size", "strategy", "lr", "found_lr", "state", "tokens", "loss"]].to_string(index=False)
    )
    found = table.frame.strategy == "metaoptimize"
    ours, theirs = (float(table.frame[rows].loss.min()) for rows in (found, ~found))
    print(f"loss after {args.tokens} tokens: AdamW {theirs:.3f}; metaoptimize, without an lr, {ours:.3f}")
    return ours, theirs


if __name__ == "__main__":
    main()
