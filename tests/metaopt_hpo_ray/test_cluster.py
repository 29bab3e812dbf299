"""Clusters of several nodes, in processes of their own: a node killed in mid-trial, nodes added, and Ray Client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow]

HERE = Path(__file__).parent


def run(script: str, tmp_path: Path) -> dict[str, Any]:
    """What a script prints as its result."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    environment.pop("RAY_ADDRESS", None)
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), environment.get("PYTHONPATH", "")]).rstrip(
        os.pathsep
    )
    command = [sys.executable, str(HERE / script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[-1].removeprefix("RESULT "))  # type: ignore[no-any-return]


def test_a_node_killed_in_mid_trial_and_nodes_that_come_later_finish_every_trial(tmp_path: Path) -> None:
    """Trials take their share of a GPU by size: no other node has one until the new one comes."""
    found = run("nodes.py", tmp_path)
    assert found["states"] == ["complete"] * 6
    assert found["tokens"] == [1200.0] * 6
    assert found["nodes"] >= 1
    assert all("launched" in reason for reason in found["reasons"])


def test_through_ray_client_the_table_is_whole(tmp_path: Path) -> None:
    """A Tuner's objects are pickled one by one on their way: scheduler and keeper meet again at the experiment."""
    assert run("client.py", tmp_path) == {"states": ["complete"] * 2, "tokens": [100.0] * 2}
