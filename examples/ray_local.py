"""The text language model at four sizes on a Ray cluster: small models teach the law, large ones wait for it.

    python examples/ray_local.py                       # a cluster on this machine
    RAY_ADDRESS=auto python examples/ray_local.py      # the cluster this machine belongs to
    python examples/ray_local.py --address ray://head:10001 --storage s3://bucket/runs --gpu-size 3e7

Interrupt it and run the same line again: the experiment goes on where it stood. Beside it, ASHA searches the largest
size alone, for as many training FLOPs.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from metaopt_hpo.trials.table import TrialTable
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


def space(tokens: int, widths: tuple[int, ...] = WIDTHS) -> dict[str, Any]:
    """Each size with as many learning rates as samples."""
    sizes = {TextLM(width=w).size: w for w in widths}
    return {
        "size": tune.grid_search(list(sizes)),
        "width": tune.sample_from(lambda spec: sizes[spec.config["size"]]),
        "tokens": tokens,
        "batch": 1024,
        "seed": 0,
        **strategy_space({"wsd": {"lr": (3e-4, 1e-1)}}),
    }


def search(args: argparse.Namespace, trainable: Any) -> TrialTable:
    """All sizes under the law; a second call goes on with what the first left."""
    folder = f"{args.storage}/{args.name}"
    if tune.Tuner.can_restore(folder):
        tuner = restore(folder, trainable)
    else:
        tuner = tune.Tuner(
            trainable,
            **tuner_configs(
                param_space=space(args.tokens),
                scheduler=ScalingLawScheduler(),
                num_samples=args.samples,
                name=args.name,
                storage_path=args.storage,
                reuse_actors=True,
            ),
        )
    return trial_table(tuner.fit())


def plain_search(args: argparse.Namespace, trainable: Any, trials: int) -> TrialTable:
    """The largest size alone, as Tune does it."""
    configs = tuner_configs(
        param_space=space(args.tokens, WIDTHS[-1:]),
        scheduler=ASHAScheduler(grace_period=4),
        num_samples=trials,
        name=f"{args.name}-plain",
        storage_path=args.storage,
        reuse_actors=True,
    )
    return trial_table(tune.Tuner(trainable, **configs).fit())


def best(table: TrialTable) -> float:
    """Smallest loss of a whole run at the largest size."""
    rows = table.frame
    return float(
        rows[(rows["size"] == TextLM(width=WIDTHS[-1]).size) & (rows.state == "complete")].loss.min()
    )


def main() -> tuple[float, float]:
    """Return the loss of (ours, the plain search's best) at the largest size after printing both."""
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
    table = search(args, trainable)
    columns = ["size", "lr", "state", "tokens", "loss", "reason"]
    print(table.frame.sort_values(["size", "loss"])[columns].to_string(index=False))
    launched = sum(tokens > 0 for tokens in table.frame["tokens"])
    print(f"{launched} of {len(table)} trials were launched, for {table.cost():.3g} FLOPs")
    trials = max(1, round(table.cost() / float(table.frame.cost.max())))
    plain = plain_search(args, trainable, trials)
    ours, theirs = best(table), best(plain)
    print(
        f"loss at width {WIDTHS[-1]}: with the law {ours:.3f}; ASHA over {trials} trials there "
        f"{theirs:.3f}, for {plain.cost():.3g} FLOPs"
    )
    return ours, theirs


if __name__ == "__main__":
    main()
