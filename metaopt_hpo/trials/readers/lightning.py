"""Lightning's `CSVLogger`: folders `version_*` with `metrics.csv` and `hparams.yaml`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from metaopt_hpo.trials import files
from metaopt_hpo.trials.nested import flat
from metaopt_hpo.trials.readers.base import Export, Reader, files_below, long_frame, need, one_frame, run_name
from metaopt_hpo.trials.schema import TableError

METRICS, SETTINGS = "metrics.csv", "hparams.yaml"


def recognises(path: str) -> bool:
    """A folder with such logs, or one run's `metrics.csv` beside its `hparams.yaml`."""
    return any((p.parent / SETTINGS).is_file() for p in files_below(path, METRICS, depth=4))


def read(path: str) -> Export:
    """The runs, one row a logged step."""
    runs = [
        (
            {"run_id": run_name(file, path), **settings(file.parent / SETTINGS)},
            [
                {k: float(v) for k, v in row.items() if k is not None and v and _number(v)}
                for row in csv.DictReader(files.text_of(file).splitlines())
            ],
        )
        for file in files_below(path, METRICS, depth=4)
    ]
    frame = long_frame(runs)
    if frame.empty:
        raise TableError(f"{path!r} holds no runs")
    return Export("Lightning CSV logs", one_frame(frame), settings=("config.",), sparse=True)


def settings(file: Path) -> dict[str, Any]:
    """What `hparams.yaml` holds, as `config.…`; objects that are no plain values are left out.

    Raises:
        TableError: the file is damaged, or the library that reads it is missing.
    """
    if not file.is_file():
        return {}
    yaml = need("yaml", "lightning", "Lightning's hyperparameters")

    class Plain(yaml.SafeLoader):  # type: ignore[name-defined, misc]
        """Reads plain values; what would need a Python object becomes nothing."""

    Plain.add_multi_constructor("", lambda loader, tag, node: None)
    try:
        found = yaml.load(file.read_text(encoding="utf-8"), Loader=Plain)
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise TableError(f"cannot read {str(file)!r}: {str(e).splitlines()[0]}") from e
    values = flat(found) if isinstance(found, dict) else {}
    return {f"config.{k}": v for k, v in values.items() if isinstance(v, (int, float, str, bool))}


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


READER = Reader("lightning", recognises, read, asked=1)
