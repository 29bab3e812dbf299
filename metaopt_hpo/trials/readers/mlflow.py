"""MLflow's runs: a `mlruns` folder (MLflow's file store: one small text file a parameter and metric) or a SQLite store.

The file store is read as its documentation lays it down, for the library refuses it by default since it is no longer
developed; a database is read by the library.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections import defaultdict
from pathlib import Path
from typing import Any

from metaopt_hpo.trials.readers.base import Export, Reader, files_below, long_frame, need, one_frame
from metaopt_hpo.trials.schema import Note, TableError

STATUS = {"1": "running", "2": "scheduled", "3": "finished", "4": "failed", "5": "killed"}
"""`RunStatus` of MLflow's protocol, as its files hold it."""


def recognises(path: str) -> bool:
    """A folder with runs of a file store, or a database with MLflow's tables."""
    given = Path(path.removeprefix("sqlite:///"))
    if given.is_file():
        return _tables(given) >= {"experiments", "runs", "metrics"}
    return bool(_run_files(path))


def read(path: str) -> Export:
    """All runs that were not deleted, one row a step."""
    given = Path(path.removeprefix("sqlite:///"))
    runs, damaged = _of_database(given) if given.is_file() else _of_folder(path)
    frame = long_frame(runs)
    if frame.empty:
        raise TableError(f"{path!r} holds no runs")
    notes = (
        (Note("damaged", damaged, f"{damaged} damaged lines of metrics were left out"),) if damaged else ()
    )
    return Export(
        "MLflow runs", one_frame(frame), settings=("params.",), notes=notes, engine="mlflow", sparse=True
    )


def _run_files(path: str) -> list[Path]:
    found = files_below(path, "meta.yaml", depth=4)
    return [p for p in found if (p.parent / "metrics").is_dir() or (p.parent / "params").is_dir()]


def _of_folder(path: str) -> tuple[list[tuple[dict[str, Any], list[dict[str, Any]]]], int]:
    runs, damaged = [], 0
    for meta in _run_files(path):
        about = dict(re.findall(r"^(\w+): '?(.*?)'?$", meta.read_text(encoding="utf-8"), re.MULTILINE))
        if about.get("lifecycle_stage") == "deleted":
            continue
        common: dict[str, Any] = {
            "run_id": about.get("run_id") or meta.parent.name,
            "state": STATUS.get(about.get("status", ""), about.get("status", "finished")),
        }
        for file in files_below(str(meta.parent / "params"), "*"):
            name = file.relative_to(meta.parent / "params").as_posix()
            common[f"params.{name}"] = _value(file.read_text(encoding="utf-8"))
        steps: dict[int, dict[str, Any]] = defaultdict(dict)
        for file in files_below(str(meta.parent / "metrics"), "*"):
            name = file.relative_to(meta.parent / "metrics").as_posix()
            for line in file.read_text(encoding="utf-8").splitlines():
                parts = line.split()
                try:
                    value, step = float(parts[1]), int(parts[2]) if len(parts) > 2 else 0
                except (ValueError, IndexError):
                    damaged += bool(line.strip())
                    continue
                steps[step][name] = value
        runs.append((common, [{"step": s, **values} for s, values in sorted(steps.items())]))
    return runs, damaged


def _of_database(file: Path) -> tuple[list[tuple[dict[str, Any], list[dict[str, Any]]]], int]:
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    tracking = need("mlflow.tracking", "mlflow", "MLflow's databases")
    client = tracking.MlflowClient(tracking_uri=f"sqlite:///{file.resolve()}")
    runs = []
    for experiment in client.search_experiments():
        token = None
        while True:
            page = client.search_runs([experiment.experiment_id], page_token=token)
            for run in page:
                common = {f"params.{k}": _value(v) for k, v in run.data.params.items()}
                common |= {"run_id": run.info.run_id, "state": run.info.status.lower()}
                steps: dict[int, dict[str, Any]] = defaultdict(dict)
                for name in run.data.metrics:
                    for metric in client.get_metric_history(run.info.run_id, name):
                        steps[metric.step][name] = metric.value
                runs.append((common, [{"step": s, **values} for s, values in sorted(steps.items())]))
            token = page.token
            if not token:
                break
    return runs, 0


def _tables(file: Path) -> set[str]:
    try:
        with file.open("rb") as stream:
            if stream.read(16) != b"SQLite format 3\0":
                return set()
        connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
        try:
            return {r[0] for r in connection.execute("select name from sqlite_master where type='table'")}
        finally:
            connection.close()
    except (OSError, sqlite3.Error):
        return set()


def _value(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


READER = Reader("mlflow", recognises, read)
