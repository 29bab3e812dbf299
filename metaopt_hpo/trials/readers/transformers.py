"""Logs of Hugging Face's `Trainer`: `trainer_state.json` in an output folder or its checkpoints.

The trainer's arguments are kept as a pickle beside it, which is not opened: the lr is the largest that was logged, and
size and batch are named by the user.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from metaopt_hpo.trials.nested import flat
from metaopt_hpo.trials.readers.base import Export, Reader, files_below, long_frame, one_frame, run_name
from metaopt_hpo.trials.schema import TableError

STATE = "trainer_state.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
KEPT = ("max_steps", "num_train_epochs", "train_batch_size")
"""Arguments that the state holds too."""

SEEN = "num_input_tokens_seen"


def recognises(path: str) -> bool:
    """A folder with such a state, or the file itself."""
    return bool(files_below(path, STATE, depth=4))


def read(path: str) -> Export:
    """The runs, one row a logged step; of a run's checkpoints, the last."""
    last: dict[Path, Path] = {}
    for file in files_below(path, STATE, depth=4):
        run = file.parent.parent if CHECKPOINT.fullmatch(file.parent.name) else file.parent
        if run not in last or _step(file) > _step(last[run]):
            last[run] = file
    frame = long_frame(_run(run, file, path) for run, file in sorted(last.items()))
    if frame.empty:
        raise TableError(f"{path!r} holds no runs")
    columns = {"tokens": SEEN} if SEEN in frame else {}
    return Export("Transformers Trainer logs", one_frame(frame), columns, settings=("config.",), sparse=True)


def _step(file: Path) -> float:
    found = CHECKPOINT.fullmatch(file.parent.name)
    return float(found[1]) if found else float("inf")  # what `save_state` wrote at the end


def _load(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as e:
        raise TableError(f"cannot read {str(file)!r} as JSON: {e}") from e
    if not isinstance(found, dict):
        raise TableError(f"{str(file)!r} holds no trainer's state")
    return found


def _run(run: Path, file: Path, root: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    state = _load(file)
    settings = {k: state[k] for k in KEPT if k in state} | flat(state.get("trial_params") or {})
    model = file.parent / "config.json"
    if model.is_file():
        settings = flat(_load(model)) | settings
    common: dict[str, Any] = {
        f"config.{k}": v for k, v in settings.items() if isinstance(v, (int, float, str, bool))
    }
    common["run_id"] = state.get("trial_name") or run_name(run / STATE, root)
    steps: dict[float, dict[str, Any]] = defaultdict(dict)
    for entry in state.get("log_history", []):  # training and evaluation write an entry each for one step
        row = {k: v for k, v in entry.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        for old, new in (("loss", "train_loss"), ("learning_rate", "lr")):
            if old in row and new not in row:
                row[new] = row.pop(old)
        steps[row.get("step", -1.0)] |= row
    reports = [row for _, row in sorted(steps.items())]
    return common, reports


READER = Reader("transformers", recognises, read, asked=1)
