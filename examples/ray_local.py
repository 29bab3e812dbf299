"""The text language model at four sizes on a Ray cluster: small models teach the law, large ones wait for it.

    python examples/ray_local.py                       # a cluster on this machine
    RAY_ADDRESS=auto python examples/ray_local.py      # the cluster this machine belongs to
    python examples/ray_local.py --address ray://head:10001 --storage s3://bucket/runs --gpu-size 3e7

Interrupt it and run the same line again: the experiment goes on where it stood.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import ray
from ray import tune

from metaopt_hpo.workloads import TextLM, train
from metaopt_hpo_ray import (
    ScalingLawScheduler,
    TrialRun,
    build_strategy,
    restore,
    strategy_space,
    trial_table,
    tuner_configs,
    with_resources,
)

WIDTHS = (16, 24, 32, 48)


def run_trial(config: dict[str, Any]) -> None:
    """One trial: everything it needs is in its config."""
    workload = TextLM(width=config["width"], sequences=config["batch"] // 64)

    def make_run(*args: Any, **options: Any) -> TrialRun:
        return TrialRun(config, *args, **options)

    train(
        workload,
        build_strategy(config),
        tokens=config["tokens"],
        seed=config["seed"],
        run_class=make_run,
        report_stride=4,
    )


def space(tokens: int, samples: int) -> dict[str, Any]:
    """Each size with as many learning rates as samples."""
    sizes = {TextLM(width=w).size: w for w in WIDTHS}
    return {
        "size": tune.grid_search(list(sizes)),
        "width": tune.sample_from(lambda spec: sizes[spec.config["size"]]),
        "tokens": tokens,
        "batch": 1024,
        "seed": 0,
        **strategy_space({"wsd": {"lr": (3e-4, 1e-1)}}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--address", help="of a running cluster; none starts one on this machine")
    parser.add_argument("--storage", default=str(Path("results/ray").resolve()), help="shared by all nodes")
    parser.add_argument("--name", default="text-lm")
    parser.add_argument("--tokens", type=int, default=2**16)
    parser.add_argument("--samples", type=int, default=5, help="learning rates at each size")
    parser.add_argument("--cpus", type=int, help="of the cluster on this machine")
    parser.add_argument("--gpu-size", type=float, help="parameters that fill one GPU; none trains on CPUs")
    args = parser.parse_args()
    address = (
        args.address or os.environ.get("RAY_ADDRESS") or "local"
    )  # never whatever cluster happens to run here
    local = {"num_cpus": args.cpus} if address == "local" else {}
    ray.init(address, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True, **local)
    trainable = with_resources(run_trial, gpu_size=args.gpu_size)
    folder = f"{args.storage}/{args.name}"
    if tune.Tuner.can_restore(folder):
        tuner = restore(folder, trainable)
    else:
        tuner = tune.Tuner(
            trainable,
            **tuner_configs(
                param_space=space(args.tokens, args.samples),
                scheduler=ScalingLawScheduler(),
                num_samples=args.samples,
                name=args.name,
                storage_path=args.storage,
                reuse_actors=True,
            ),
        )
    results = tuner.fit()
    table = trial_table(results)
    columns = ["size", "lr", "state", "tokens", "loss", "reason"]
    print(table.frame.sort_values(["size", "loss"])[columns].to_string(index=False))
    launched = sum(tokens > 0 for tokens in table.frame["tokens"])
    print(f"{launched} of {len(results)} trials were launched, for {table.cost():.3g} FLOPs")


if __name__ == "__main__":
    main()
