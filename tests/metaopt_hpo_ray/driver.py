"""A driver that a test kills: `python driver.py ADDRESS STORAGE` runs the experiment "killed" of toy trials."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import ray
import toy_trial
from ray import tune

from metaopt_hpo_ray import ScalingLawSearch, tuner_configs


def main(address: str, storage: str) -> None:
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    search = ScalingLawSearch(
        candidates=[(100, 512), (200, 512), (400, 512)], lr=(1e-3, 1e-1), batch=toy_trial.BATCH, seed=3
    )
    configs = tuner_configs(
        param_space={"seed": 0, "seconds": 0.02},
        search_alg=search,
        num_samples=8,
        max_concurrent_trials=2,
        name="killed",
        storage_path=storage,
        reuse_actors=True,
        num_to_keep=None,  # a trial saves a dozen checkpoints a second here
        run_options={"verbose": 0},
    )
    tune.Tuner(toy_trial.train, **configs).fit()


if __name__ == "__main__":
    main(*sys.argv[1:])
