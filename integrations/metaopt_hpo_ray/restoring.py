"""restore: `Tuner.restore` that survives a damaged file of Tune's own.

A driver that is killed may leave the newest snapshot cut short, and Tune then restores no trial and says nothing. The
keeper puts a copy of what only Tune writes beside it with each snapshot; here a damaged file is replaced by the copy.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs  # type: ignore[import-untyped]
from ray import cloudpickle, tune

from metaopt_hpo.atomic import write_bytes
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo_ray.storage import filesystem_of

logger = logging.getLogger(__name__)

TUNER = "tuner.pkl"
STATES = "experiment_state-"
COPY = "metaopt-copy-"
"""Begin of the name of a copy; Tune's own patterns do not match it."""


class RestoreError(MetaOptError):
    """An experiment cannot be restored."""


def copy_state(folder: str) -> None:
    """Keep a copy of the newest snapshot of the trials in a folder of this machine; called when it has been written."""
    states = sorted(Path(folder).glob(f"{STATES}*.json"))
    if states:
        _copy(states[-1], Path(folder, COPY + states[-1].name))


def copy_tuner(folder: str) -> None:
    """Keep a copy of the Tuner in the experiment's folder."""
    source = Path(folder, TUNER)
    if source.is_file():
        _copy(source, Path(folder, COPY + TUNER))


def _copy(source: Path, target: Path) -> None:
    write_bytes(target, source.read_bytes())


def restore(path: str | os.PathLike[str], trainable: Any, **options: Any) -> tune.Tuner:
    """`tune.Tuner.restore(path, trainable, **options)`, after replacing files of Tune's that are damaged.

    Args:
        path: the experiment's folder, or its URI.
        trainable, options: as `Tuner.restore`.

    Raises:
        RestoreError: a file is damaged and there is no whole copy of it.

    Examples:
        >>> from ray import tune
        >>> from metaopt_hpo_ray import restore, tuner_configs
        >>> def train(config):
        ...     for k in range(4, -1, -1):
        ...         seen = config["tokens"] // 2**k
        ...         loss = 3 + (config["lr"] - 0.01) ** 2 + 10 * seen**-0.5
        ...         tune.report({"loss": loss, "tokens_seen": seen})
        ...
        >>> space = {"size": 1e5, "tokens": 2**16, "batch": 512, "lr": tune.grid_search([0.003, 0.01])}
        >>> results = tune.Tuner(train, **tuner_configs(param_space=space)).fit()
        >>> len(restore(results.experiment_path, train).fit())
        2
    """
    files, folder = filesystem_of(path)
    found = files.get_file_info(pyarrow.fs.FileSelector(folder))
    names = {i.base_name for i in found if i.type == pyarrow.fs.FileType.File}
    _mend(files, folder, TUNER, names, cloudpickle.loads)
    states = sorted(n for n in names if n.startswith(STATES))
    for name in reversed(states):
        if _is_whole(files, f"{folder}/{name}", json.loads):
            break
        if COPY + name in names and _is_whole(files, f"{folder}/{COPY}{name}", json.loads):
            _replace(files, folder, name)
            break
        files.move(f"{folder}/{name}", f"{folder}/damaged-{name}")
        logger.warning("%s is damaged and was moved aside; an older one is taken", name)
    else:
        raise RestoreError(f"no snapshot of the trials in {folder} can be read; start the experiment anew")
    return tune.Tuner.restore(str(path), trainable, **options)


def _mend(files: Any, folder: str, name: str, names: set[str], parse: Callable[[bytes], Any]) -> None:
    if name in names and _is_whole(files, f"{folder}/{name}", parse):
        return
    if COPY + name not in names or not _is_whole(files, f"{folder}/{COPY}{name}", parse):
        raise RestoreError(
            f"{folder}/{name} is damaged and there is no copy of it; start the experiment anew"
        )
    _replace(files, folder, name)


def _replace(files: Any, folder: str, name: str) -> None:
    files.copy_file(f"{folder}/{COPY}{name}", f"{folder}/{name}")
    logger.warning("%s was damaged and was replaced by the copy of it", name)


def _is_whole(files: Any, path: str, parse: Callable[[bytes], Any]) -> bool:
    try:
        with files.open_input_stream(path) as stream:
            parse(bytes(stream.readall()))
    except Exception:  # whatever a damaged pickle raises
        return False
    return True
