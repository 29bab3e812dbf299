"""A results folder: the plan and the trials of a comparison, and the machine it ran on."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from metaopt_hpo.atomic import WriteError, write_text
from metaopt_hpo.comparison.design import ComparisonPlan
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.trials.table import TrialTable

PLAN_FILE = "plan.json"
TABLE_FILE = "trials.parquet"
STORE_FILE = "trials.sqlite"
LOCK_FILE = "compare.lock"
PILOT = "pilot"
"""The method of the trials at pilot sizes."""
FORMAT_VERSION = 1


class CompareError(MetaOptError):
    """A comparison cannot be run, resumed or read."""


@dataclass(frozen=True)
class Comparison:
    """A finished or interrupted comparison: its plan, its trials, and the machine it ran on.

    Examples:
        >>> from metaopt_hpo import ComparisonPlan, TrialRecord, TrialTable, compare
        >>> from metaopt_hpo.comparison.table_objective import TableObjective
        >>> runs = TrialTable.from_records(
        ...     TrialRecord(size=1e6, tokens=1e8, batch=1e4, lr=x, loss=3 + 1e4 * (x - 4e-3) ** 2)
        ...     for x in (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
        ... )
        >>> plan = ComparisonPlan(
        ...     workload="table", methods=("grid", "random"), seeds=(0,), size=1e6, pilot_sizes=(), tokens=1e8,
        ...     batch=1e4, lr_bounds=(1e-3, 1.6e-2), runs=4, pilot_runs=1,
        ... )
        >>> comparison = compare(TableObjective(runs), plan, "results", workers=1)
        >>> sorted(comparison.table.frame["method"].unique())
        ['grid', 'random']
        >>> type(comparison).read("results").plan == plan
        True
    """

    plan: ComparisonPlan
    table: TrialTable
    machine: dict[str, str]
    command: str = ""

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Comparison:
        """Read a results folder.

        Raises:
            CompareError: it holds no comparison, or one of a newer version.
        """
        path = Path(folder)
        saved = _read_plan(path)
        if saved is None or not (path / TABLE_FILE).exists():
            raise CompareError(f"{path} holds no finished comparison; run: metaopt-hpo compare --out {path}")
        try:
            plan = ComparisonPlan.from_json(saved.plan)
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CompareError(f"the plan in {path} is damaged ({reason}); restore {PLAN_FILE}") from error
        return cls(
            plan,
            TrialTable.read(path / TABLE_FILE),
            saved.machine,
            saved.command,
        )


def claim(folder: Path, plan: ComparisonPlan, command: str) -> None:
    """Write the plan into its folder, whole or not at all.

    Raises:
        CompareError: the folder cannot be written, or holds another plan.
    """
    saved = _read_plan(folder)
    if saved is not None and saved.plan != plan.to_json():
        changed = sorted(k for k, v in plan.to_json().items() if saved.plan.get(k) != v)
        raise CompareError(
            f"{folder} holds a comparison with other {', '.join(changed)}; "
            "choose another --out, or repeat the options it was started with"
        )
    content = {"version": FORMAT_VERSION, "plan": plan.to_json(), "machine": machine(), "command": command}
    try:
        write_text(folder / PLAN_FILE, json.dumps(content, indent=2))
    except WriteError as error:
        raise CompareError(f"cannot write to results folder {folder}: {error}") from error


class _Saved(BaseModel):
    """What plan.json holds."""

    model_config = ConfigDict(strict=True)
    version: int
    plan: dict[str, Any]
    machine: dict[str, str]
    command: str = ""


def _read_plan(folder: Path) -> _Saved | None:
    path = folder / PLAN_FILE
    try:
        saved = from_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise CompareError(f"{path} cannot be read: {error}") from error
    if not isinstance(saved, dict) or not {"version", "plan", "machine"} <= saved.keys():
        raise CompareError(f"{path} is not a plan of metaopt-hpo; choose another folder")
    if isinstance(saved["version"], int) and saved["version"] > FORMAT_VERSION:
        raise CompareError(
            f"{folder} was written by a newer version of metaopt-hpo; upgrade it to read the results"
        )
    try:
        return _Saved.model_validate(saved)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CompareError(
            f"{path} is damaged ({where}: {first['msg']}); restore it, or choose another folder"
        ) from None


def machine() -> dict[str, str]:
    """Versions and machine of this process, for reports."""
    versions = {}
    for package in ("metaopt-hpo", "torch", "optuna", "numpy", "pandas", "scipy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": str(os.cpu_count()),
        **versions,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
