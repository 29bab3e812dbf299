"""A cluster of several raylets on this machine: `python nodes.py STORAGE` prints what became of its trials as JSON.

One node is killed while trials run on it, and another is added while trials wait, as an autoscaler would do it.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import ray
from ray import tune
from ray.cluster_utils import Cluster

from metaopt_hpo_ray import ScalingLawScheduler, trial_table, tuner_configs, with_resources

STEPS = 12


def train(config: dict[str, Any]) -> None:
    """A trial of a few seconds that goes on from its checkpoint and notes on which node it is."""
    import tempfile

    begin = 0
    if (given := tune.get_checkpoint()) is not None:
        with given.as_directory() as folder:
            begin = int(Path(folder, "step").read_text())
    node = ray.get_runtime_context().get_node_id()
    for step in range(begin, STEPS):
        time.sleep(config["seconds"])
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "step").write_text(str(step + 1))
            tokens = config["tokens"] * (step + 1) / STEPS
            report = {"loss": 5.0 - tokens / config["tokens"], "tokens_seen": tokens, "node": node}
            tune.report(report, checkpoint=tune.Checkpoint.from_directory(folder))
    Path(config["marks"], f"{tune.get_context().get_trial_id()}-{node}").touch()


def main(storage: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    doomed = cluster.add_node(num_cpus=1, num_gpus=1)
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    cluster.wait_for_nodes()
    marks = Path(storage, "marks")
    marks.mkdir(parents=True)
    scheduler = ScalingLawScheduler(ahead=4)
    space = {
        "size": tune.grid_search([4.0, 8.0, 16.0]),
        "tokens": 1200,
        "batch": 10,
        "lr": tune.grid_search([0.01, 0.02]),
    }
    configs = tuner_configs(
        param_space={**space, "seconds": 0.2, "marks": str(marks)},
        scheduler=scheduler,
        name="nodes",
        storage_path=storage,
        max_failures=3,
        run_options={"verbose": 0},
    )
    configs["tune_config"].scheduler = scheduler

    tuner = tune.Tuner(with_resources(train, cpus=0.5, gpu_size=16.0), **configs)
    with ThreadPoolExecutor(1) as driver:  # nodes are added from the main thread only
        ends = driver.submit(tuner.fit)
        while not any(len(e.points) >= 3 for e in list(scheduler.book.entries.values())):
            time.sleep(0.1)
        cluster.remove_node(doomed, allow_graceful=False)  # in mid-trial, and with the only GPU
        time.sleep(1)
        cluster.add_node(num_cpus=2, num_gpus=1)
        results = ends.result()
    frame = trial_table(results).frame
    nodes = {p.name.split("-", 1)[1] for p in marks.iterdir()}
    said = {
        "states": frame.state.tolist(),
        "tokens": frame.tokens.tolist(),
        "nodes": len(nodes),
        "reasons": frame.reason.tolist(),
    }
    ray.shutdown()
    cluster.shutdown()
    print("RESULT " + json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1])
