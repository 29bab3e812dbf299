"""A driver that talks to its cluster through Ray Client: `python client.py STORAGE` prints its table as JSON."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import ray
from ray import tune
from ray.cluster_utils import Cluster

from metaopt_hpo_ray import trial_table, tuner_configs


def train(config: dict[str, Any]) -> None:
    """Two reports."""
    for part in (0.5, 1.0):
        tune.report({"loss": 3.0 - part, "tokens_seen": config["tokens"] * part})


def connect(address: str) -> None:
    """Connect; the server of a client takes one of Ray's fixed ports, which a cluster beside this one may hold."""
    for left in (2, 1, 0):
        try:
            ray.init(address, logging_level="ERROR")
            return
        except ConnectionAbortedError:
            if not left:
                raise


def main(storage: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = {"num_cpus": 2, "include_dashboard": False, "ray_client_server_port": port}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    connect(f"ray://127.0.0.1:{port}")
    try:
        space = {"size": tune.grid_search([10, 20]), "tokens": 100, "batch": 10, "lr": 0.1}
        configs = tuner_configs(
            param_space=space, name="client", storage_path=storage, run_options={"verbose": 0}
        )
        results = tune.Tuner(train, **configs).fit()
        frame = trial_table(results).frame
        print("RESULT " + json.dumps({"states": frame.state.tolist(), "tokens": frame.tokens.tolist()}))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
