"""Storage that the nodes of a cluster do not share: said before a trial loses its checkpoint there."""

from __future__ import annotations

import warnings

import ray

from metaopt_hpo_ray.columns import TuneWarning

LOCAL = ("file://", "local://")
"""Storage that is a folder of the machine all the same."""


def warn_unshared(storage_path: str | None, stacklevel: int = 2) -> bool:
    """Warn where a cluster of several nodes keeps its trials in a path of one machine.

    Returns:
        False where it could not be told yet, as Ray has not started.

    Warns:
        TuneWarning: it does.
    """
    if storage_path is not None and "://" in storage_path and not storage_path.startswith(LOCAL):
        return True
    if not ray.is_initialized():
        return False
    nodes = sum(1 for n in ray.nodes() if n.get("Alive"))
    if nodes > 1:
        warnings.warn(
            f"the cluster has {nodes} nodes and storage_path={storage_path or '~/ray_results'!r} is a path of this "
            "machine: unless every node mounts it, a trial that moves to another node loses its checkpoint and "
            "starts again at its first step; give a URI such as s3://… or a path on shared storage",
            TuneWarning,
            stacklevel=stacklevel + 1,
        )
    return True
