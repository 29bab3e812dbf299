"""One small Ray cluster for the whole suite, started by the first test that needs it and gone after the last."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

HELPERS = (Path(__file__).parent, Path(__file__).resolve().parents[1] / "metaopt_hpo" / "comparison")
sys.path[:0] = map(str, HELPERS)

CPUS = 2


def ray_processes() -> list[psutil.Process]:
    """Processes of Ray that descend from this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if any(word in line for word in ("raylet", "gcs_server", "ray::", "/ray/")):
            found.append(process)
    return found


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a cluster of two CPUs. Afterwards no process of Ray may be left."""
    import ray

    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    for name in (
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S",
    ):
        os.environ.setdefault(name, "0")
    # the workers import the suite's own helpers
    paths = os.pathsep.join([*map(str, HELPERS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    os.environ["PYTHONPATH"] = paths
    info = ray.init(
        "local",
        num_cpus=CPUS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=100 * 2**20,
    )
    yield str(info.address_info["gcs_address"])
    ray.shutdown()
    deadline = time.monotonic() + 30
    while (left := ray_processes()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, f"Ray left processes behind: {left}"
