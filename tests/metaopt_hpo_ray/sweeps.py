"""Sweeps over sizes of a known law on a simulated cluster."""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from stub_cluster import Curve, StubCluster, stub_trial, world_curve, world_loss

from metaopt_hpo.trials.record import TrialRecord
from metaopt_hpo_ray import JournalCallback, ScalingLawScheduler

SIZES = tuple(1e6 * 2**k for k in range(6))


def kept(**options: Any) -> ScalingLawScheduler:
    scheduler = ScalingLawScheduler(**{"background": False, **options})
    JournalCallback(scheduler)
    scheduler.set_search_properties("loss", "min")
    return scheduler


def sweep(count: int, seed: int = 0) -> list[Trial]:
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        size = SIZES[int(rng.integers(6))]
        lr, noise = float(10 ** rng.uniform(-4, -1)), float(0.003 * rng.standard_normal())
        out.append(stub_trial(f"t{i:05d}", size=size, tokens=20 * size, batch=1e4, lr=lr, noise=noise))
    return out


def curve_of(trial: Trial) -> Curve:
    c = trial.config
    return world_curve(c["size"], c["tokens"], c["lr"], c.get("noise", 0.0))


def run(scheduler: TrialScheduler, count: int, slots: int, seed: int = 0) -> StubCluster:
    cluster = StubCluster(scheduler, curve_of, slots=slots)
    for trial in sweep(count, seed):
        cluster.add(trial)
    cluster.run()
    return cluster


def found(cluster: StubCluster, size: float) -> float:
    """The lowest final loss among trials of this size that ran to their end."""
    done = [
        t.last_result["loss"]
        for t in cluster.get_trials()
        if t.config["size"] == size and t.last_result.get("tokens_seen") == t.config["tokens"]
    ]
    return min(done)


def evidence() -> list[TrialRecord]:
    return [
        TrialRecord(
            size=s, tokens=20 * s, batch=1e4, lr=lr, loss=world_loss(s, 20 * s, lr), trial=f"{s}-{lr}"
        )
        for s in SIZES[:4]
        for lr in (1e-3, 3e-3, 1e-2, 3e-2)
    ]
