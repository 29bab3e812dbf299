"""The cluster that searches run on, and what Tune would print of them."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import ray

_OUTPUT = "RAY_AIR_NEW_OUTPUT"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the boxes that Tune prints for each experiment, verbose=0 or not: a comparison has dozens."""
    before = os.environ.get(_OUTPUT)
    os.environ[_OUTPUT] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_OUTPUT]
        else:
            os.environ[_OUTPUT] = before


def threads_here() -> int:
    """torch's threads in this process: trials get as many, for results depend on their number."""
    import torch

    return int(torch.get_num_threads())


def start_ray(cpus: int) -> None:
    """Start Ray where it is not: the cluster at RAY_ADDRESS, else one on this machine."""
    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**options)
    else:
        # "local" starts a cluster even where another one runs on this machine
        ray.init("local", num_cpus=cpus, include_dashboard=False, **options)
