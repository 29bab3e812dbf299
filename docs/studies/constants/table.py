"""The table of constants: found in the source, scaled one at a time, and judged on real runs.

Fits are judged on ordered splits of published tables: excess loss at the predicted configuration, and the predicted
loss's error in units of its interval. What chooses runs is judged by the target runs that a search needs on a table.
"""

from __future__ import annotations

import ast
import math
import pkgutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

import metaopt_hpo.scaling
from metaopt_hpo.atomic import replacing
from metaopt_hpo.comparison.replay import replay
from metaopt_hpo.comparison.scoring import cells_of, of_law, score
from metaopt_hpo.comparison.table_objective import TableObjective
from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling import fit
from studies import benchmarks
from studies.benchmarks import Split

FILE = Path(__file__).with_name("constants.parquet")
SPLITS = ("oe-302", "sl-215", "sl-both")
SEARCH_TARGET = (4.3e8, 5e10)
SEARCH_PILOTS = (2.2e8, 8.5e9)
SEEDS = 4
DRAWS = 40
POLICY = "metaopt_hpo.scaling.policy"

MOVED = {"excess": 0.005, "error": 0.02, "runs": 0.05}
"""Changes (excess in percentage points, the others in their units) below which nothing has moved."""


@dataclass(frozen=True)
class Constant:
    """A number of `metaopt_hpo.scaling`."""

    module: str
    name: str
    value: float | tuple[float, ...] | Mapping[str, Any]
    source: str
    """The text beneath it in the code."""

    @property
    def label(self) -> str:
        return f"{self.module.removeprefix('metaopt_hpo.scaling.')}.{self.name}"


def constants() -> list[Constant]:
    """Every numeric constant of the room, by module."""
    found = []
    for info in pkgutil.walk_packages(metaopt_hpo.scaling.__path__, "metaopt_hpo.scaling."):
        module = import_module(info.name)
        if module.__file__ is None:
            continue
        body = ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
        for node, after in zip(body, [*body[1:], None], strict=True):
            targets = node.targets if isinstance(node, ast.Assign) else ()
            if len(targets) != 1 or not isinstance(targets[0], ast.Name) or not targets[0].id.isupper():
                continue
            value = getattr(module, targets[0].id)
            if not _numeric(value):
                continue
            text = ast.get_docstring(ast.Module([after], [])) if isinstance(after, ast.Expr) else None
            found.append(Constant(info.name, targets[0].id, value, " ".join((text or "–").split())))
    return found


def scaled(value: Any, factor: float) -> Any:
    """A constant times a factor; whole numbers stay whole and at least 1, mappings and tuples go member by member."""
    if isinstance(value, Mapping):
        return {k: scaled(v, factor) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(scaled(v, factor) for v in value)
    return max(1, round(value * factor)) if isinstance(value, int) else value * factor


@contextmanager
def changed(constant: Constant, factor: float) -> Iterator[None]:
    """The constant scaled wherever the room's modules hold it."""
    holders = [
        m
        for name, m in sys.modules.items()
        if name.startswith("metaopt_hpo.scaling") and getattr(m, constant.name, None) is constant.value
    ]
    for m in holders:
        setattr(m, constant.name, scaled(constant.value, factor))
    try:
        yield
    finally:
        for m in holders:
            setattr(m, constant.name, constant.value)


def measure_fits(splits: list[Split]) -> dict[str, float]:
    """Mean excess (%) at predicted configurations, and the rms of the predicted loss's error over its half-width."""
    excess, errors = [], []
    for split in splits:
        law = fit(split.train, allow_weak=True, draws=DRAWS)
        cells = cells_of(split.test)
        excess += score(of_law(law), cells)
        for cell, grid in cells.items():
            loss = law.predict(*cell).loss
            errors.append(math.log(loss.value / grid.best) / (0.5 * math.log(loss.high / loss.low)))
    return {"excess": 100 * float(np.mean(excess)), "error": float(np.sqrt(np.mean(np.square(errors))))}


def measure_search(objective: TableObjective) -> dict[str, float]:
    """Mean target runs, pilots included, until the law's search is within 0.25 % of the best."""
    pilots = [c for c in objective.cells if c[0] < SEARCH_PILOTS[0] and c[1] < SEARCH_PILOTS[1]]
    result = replay(
        objective, objective_target(objective), pilots=pilots, methods=("law",), seeds=SEEDS, limit=20.0
    )
    summary = result.summary()
    return {"runs": float(summary.loc[summary["within"] == "0.25%", "mean"].iloc[0])}


def objective_target(objective: TableObjective) -> tuple[float, float]:
    """The cell that is searched."""
    size, tokens = SEARCH_TARGET
    return min(objective.cells, key=lambda c: abs(math.log(c[0] / size)) + abs(math.log(c[1] / tokens)))


def markdown(frame: pd.DataFrame) -> str:
    """The table: value, source, and what halving and doubling move."""
    lines = ["| constant | value | what it is, and where from | halved | doubled |", "|---|---|---|---|---|"]
    for _, g in frame.groupby("constant", sort=False):
        by = {row["factor"]: row for row in g.to_dict("records")}
        first = g.iloc[0]
        cells = [_moved(by[f]) if f in by else "–" for f in (0.5, 2.0)]
        lines.append(
            f"| `{first['constant']}` | {first['value']} | {first['source']} | {cells[0]} | {cells[1]} |"
        )
    return "\n".join(lines)


def main(
    data: Annotated[Path | None, typer.Option(help="Folder of published tables (docs/laws.md).")] = None,
    minutes: Annotated[float, typer.Option(help="Start no further constant after so many minutes.")] = 60.0,
    report: Annotated[bool, typer.Option("--report", help="Only print what is kept.")] = False,
    out: Annotated[Path, typer.Option(help="Kept results; what they hold is not measured again.")] = FILE,
) -> None:
    """Scale every constant by a half and by two, and print what moved."""
    kept = pd.read_parquet(out) if out.exists() else pd.DataFrame(columns=["constant", "factor"])
    if not report:
        if data is None:
            raise MetaOptError("give --data, the folder of published tables (docs/laws.md), or --report")
        warnings.simplefilter("ignore")
        kept = _measure_all(data, kept, out, minutes)
    typer.echo(markdown(kept))


def _measure_all(data: Path, kept: pd.DataFrame, out: Path, minutes: float) -> pd.DataFrame:
    splits = [s for s in benchmarks.ordered_splits(data) if s.name in SPLITS]
    objective = TableObjective(benchmarks.steplaw(data))
    begun = time.monotonic()
    found = constants()
    before = {**measure_fits(splits), **measure_search(objective)}
    done = set(zip(kept["constant"], kept["factor"], strict=True))
    for constant in found:
        for factor in (0.5, 2.0):
            if (constant.label, factor) in done or time.monotonic() - begun > 60 * minutes:
                continue
            row: dict[str, Any] = {"constant": constant.label, "factor": factor}
            row |= {"value": _shown(constant.value), "source": constant.source, "failed": ""}
            try:
                with changed(constant, factor):
                    after = (
                        measure_search(objective)
                        if constant.module.startswith(POLICY)
                        else measure_fits(splits)
                    )
                row |= {k: after[k] - before[k] for k in after}
            except Exception as error:
                row["failed"] = type(error).__name__
            kept = pd.concat([kept, pd.DataFrame([row])], ignore_index=True)
            with replacing(out) as temporary:
                kept.to_parquet(temporary, index=False)
    return kept


def _moved(row: Mapping[Any, Any]) -> str:
    if row["failed"]:
        return f"fails ({row['failed']})"
    texts = []
    for key, unit in (
        ("excess", " points of excess"),
        ("error", " of the loss's error"),
        ("runs", " target runs"),
    ):
        change = float(row.get(key, math.nan))
        if math.isfinite(change) and abs(change) > MOVED[key]:
            texts.append(f"{change:+.3g}{unit}".replace("-", "−"))
    return ", ".join(texts) or "nothing"


def _numeric(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(map(_numeric, value.values()))
    if isinstance(value, tuple):
        return bool(value) and all(map(_numeric, value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return f"{value:.4g}"
