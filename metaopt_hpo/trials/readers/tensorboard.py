"""TensorBoard's event files, one folder a run, with the settings that `add_hparams` or Lightning wrote."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from metaopt_hpo.trials.readers.base import Export, Reader, files_below, long_frame, need, one_frame, run_name
from metaopt_hpo.trials.readers.lightning import SETTINGS
from metaopt_hpo.trials.readers.lightning import settings as lightning_settings
from metaopt_hpo.trials.schema import TableError

PATTERN = "*tfevents*"
SESSIONS = "_hparams_/session_start_info"


def recognises(path: str) -> bool:
    """A folder with event files, or one of them."""
    return bool(files_below(path, PATTERN))


def read(path: str) -> Export:
    """The runs' scalars, one row a step."""
    accumulator = need(
        "tensorboard.backend.event_processing.event_accumulator", "tensorboard", "TensorBoard's event files"
    )
    hparams = need("tensorboard.plugins.hparams.plugin_data_pb2", "tensorboard", "TensorBoard's event files")
    scalars: dict[Path, list[dict[str, Any]]] = {}
    settings: dict[Path, dict[str, Any]] = {}
    for folder in sorted({p.parent for p in files_below(path, PATTERN)}):
        events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        settings[folder] = _settings(events, hparams) | lightning_settings(folder / SETTINGS)
        scalars[folder] = _scalars(events)
    runs = []
    for folder, rows in scalars.items():
        # `add_hparams` writes a folder of its own below the run's
        if settings[folder] and folder.parent in scalars and not settings[folder.parent]:
            continue
        own = settings[folder] or next((s for f, s in settings.items() if f.parent == folder and s), {})
        runs.append(({"run_id": run_name(folder / "x", path), **own}, rows))
    frame = long_frame(runs)
    if frame.empty:
        raise TableError(f"{path!r} holds no scalars")
    return Export("TensorBoard event files", one_frame(frame), settings=("config.",), sparse=True)


def _scalars(events: Any) -> list[dict[str, Any]]:
    steps: dict[int, dict[str, Any]] = defaultdict(dict)
    tags = events.Tags()
    for tag in tags["scalars"]:
        for event in events.Scalars(tag):
            steps[event.step][tag] = float(event.value)
    if tags["tensors"]:  # TensorFlow 2 and torch's newer writers keep scalars as tensors
        make = need("tensorboard.util.tensor_util", "tensorboard", "TensorBoard's event files").make_ndarray
        for tag in tags["tensors"]:
            for event in events.Tensors(tag):
                value = make(event.tensor_proto)
                if value.ndim == 0 and value.dtype.kind in "fiu":
                    steps[event.step][tag] = float(value)
    return [{"step": s, **values} for s, values in sorted(steps.items())]


def _settings(events: Any, hparams: Any) -> dict[str, Any]:
    try:
        content = events.PluginTagToContent("hparams")
    except KeyError:
        return {}
    if SESSIONS not in content:
        return {}
    session = hparams.HParamsPluginData.FromString(content[SESSIONS]).session_start_info
    out: dict[str, Any] = {}
    for name, value in session.hparams.items():
        kind = value.WhichOneof("kind")
        if kind in ("number_value", "string_value", "bool_value"):
            out[f"config.{name}"] = getattr(value, kind)
    return out


READER = Reader("tensorboard", recognises, read, asked=2)
