"""Storage that the nodes of a cluster do not share: found before a trial loses its checkpoint there."""

from __future__ import annotations

import logging
import os
import uuid
import warnings
from pathlib import Path
from typing import Any

import pyarrow.fs  # type: ignore[import-untyped]
import ray

from metaopt_hpo_ray.columns import TuneWarning

logger = logging.getLogger(__name__)

LOCAL = ("file://", "local://")
"""Storage that is a folder of the machine all the same."""

PROBE_SECONDS = 20.0
"""How long a node may take to look for a file; one that is busy for longer is not judged."""


def warn_unshared(storage_path: str | None, files: Any = None, stacklevel: int = 2) -> bool:
    """Warn where a cluster of several nodes keeps its trials in a path that not all of them see.

    A file is written here and looked for on every other node.

    Args:
        storage_path: as in `RunConfig`.
        files: the file system that the path is of, where that is known.

    Returns:
        False where it could not be told yet, as Ray has not started.

    Warns:
        TuneWarning: a node does not see it, or could not be asked.
    """
    if storage_path is not None and "://" in storage_path and not storage_path.startswith(LOCAL):
        return True
    if files is not None and not isinstance(files, pyarrow.fs.LocalFileSystem):
        return True
    if not ray.is_initialized():
        return False
    nodes = [n for n in ray.nodes() if n.get("Alive")]
    if len(nodes) < 2:
        return True
    blind = probe(storage_path, nodes)
    if blind:
        warnings.warn(
            f"{blind} of the cluster's {len(nodes)} nodes do not see storage_path={storage_path or '~/ray_results'!r}, "
            "a path of this machine: a trial that moves there loses its checkpoint and starts again at its first step; "
            "give a URI such as s3://… or a path that every node mounts",
            TuneWarning,
            stacklevel=stacklevel + 1,
        )
    return True


def filesystem_of(path: str | os.PathLike[str]) -> tuple[Any, str]:
    """File system and folder of a path or URI."""
    text = os.fspath(path)
    if "://" in text:
        found: tuple[Any, str] = pyarrow.fs.FileSystem.from_uri(text)
        return found
    return pyarrow.fs.LocalFileSystem(), str(Path(text).expanduser().resolve())


def probe(storage_path: str | None, nodes: list[dict[str, Any]]) -> int:
    """How many of the nodes do not see a file that was just written to the path here; those not to be asked count."""
    ids = [n.get("NodeID") for n in nodes]
    if not all(ids):
        return len(nodes) - 1
    text = (storage_path or "~/ray_results").removeprefix("file://").removeprefix("local://")
    folder = Path(text).expanduser().resolve()
    mark = folder / f".metaopt-probe-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
        return sum(not seen for seen in _ask(str(mark), [str(i) for i in ids]))
    except Exception as error:
        logger.warning("whether all nodes see %s could not be found out: %s", folder, error)
        return 0
    finally:
        mark.unlink(missing_ok=True)


def _ask(path: str, nodes: list[str]) -> list[bool]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    look = ray.remote(num_cpus=0)(_looks)
    asked = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(path)
        for node in nodes
        if node != here
    ]
    done, _ = ray.wait(asked, num_returns=len(asked), timeout=PROBE_SECONDS)
    return list(ray.get(done)) if done else []


def _looks(path: str) -> bool:
    try:
        os.listdir(os.path.dirname(path))  # a network file system may remember that it was not there
    except OSError:
        return False
    return os.path.exists(path)
