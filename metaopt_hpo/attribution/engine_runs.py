"""The experiment through a search engine (Optuna, Ray): every run a trial of a real optimizer on a real workload.

Only what an engine can vary is a factor here (the schedule, by strategy name) and only losses are measured, so the
criterion drops out of the decomposition; cells, seeds, estimand and verdicts are those of the other tiers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metaopt_hpo.attribution.config import ExperimentConfig
from metaopt_hpo.attribution.estimand import AttributionError
from metaopt_hpo.attribution.experiment import WorldRuns
from metaopt_hpo.attribution.levels import CRITERIA, Setting
from metaopt_hpo.attribution.stepping import GridResult
from metaopt_hpo.comparison.engine import SearchEngine, SearchTask, get_engine
from metaopt_hpo.comparison.methods import method
from metaopt_hpo.comparison.objective import Configuration, Objective
from metaopt_hpo.comparison.training_objective import TrainObjective
from metaopt_hpo.trials.record import TrialRecord

if TYPE_CHECKING:
    from metaopt_hpo.workloads.base import Workload

LR_BOUNDS = (2.0**-13, 2.0**-4)
"""Range of the grid for AdamW on small transformers; edge optima are censored, and said to be."""
LR_POINTS = 10
MIN_POINTS = 5
"""Of the lr grid: its every other point, the protocol's coarse grid, must still hold three."""
STORE_FILE = "attribution.sqlite"


def run_with_engine(
    engine: str | SearchEngine,
    workload: Workload | None,
    config: ExperimentConfig,
    *,
    objective: Objective | None = None,
    lr_bounds: tuple[float, float] = LR_BOUNDS,
    points: int = LR_POINTS,
    store: Path | None = None,
) -> WorldRuns:
    """Run the grid of every (cell, schedule, seed) as a study of the engine; stored studies are resumed.

    Args:
        engine: its name, or one.
        workload: trained at each cell's batch; give `objective` instead to look trials up.
        lr_bounds, points: of the lr grid, the same in every cell; at least 5 points.
        store: folder of the engine's store; None keeps it in memory.

    Raises:
        AttributionError: factors other than the schedule, or a cell whose grid did not complete.
        EngineError: no such engine.
        ValueError: fewer points than a coarse grid needs, or nothing to train or look up.
    """
    if points < MIN_POINTS:
        raise ValueError(f"points must be at least {MIN_POINTS}, got {points!r}")
    if config.factors != ("schedule",):
        raise AttributionError(
            f"an engine varies the schedule only: set factors=('schedule',), got {config.factors!r}"
        )
    if objective is None:
        if workload is None:
            raise ValueError("give a workload or an objective")
        objective = TrainObjective([workload], device=config.device)
    runner = get_engine(engine) if isinstance(engine, str) else engine
    if store is not None:
        store.mkdir(parents=True, exist_ok=True)
    where = None if store is None else str(store / STORE_FILE)
    settings = tuple(replace(Setting(noise=config.base_noise), schedule=s) for s in ("constant", "cosine"))
    tokens, batch = config.cells
    lr = np.geomspace(*lr_bounds, points)
    criteria = np.full((len(tokens), 2, points, len(config.seeds), len(CRITERIA)), np.inf)
    size = objective.sizes[-1]
    for c, (d, b) in enumerate(zip(tokens, batch, strict=True)):
        for i, setting in enumerate(settings):
            for s, seed in enumerate(config.seeds):
                point = Configuration(
                    size=size, tokens=d, batch=b, lr=lr[0], strategy=setting.schedule, seed=seed
                )
                task = SearchTask(
                    objective=objective,
                    size=size,
                    tokens=d,
                    batch=b,
                    lr_bounds=lr_bounds,
                    budget=points * objective.cost(point),
                    seed=seed,
                    strategy=setting.schedule,
                )
                name = f"attribution-{objective.name}-{setting.schedule}-D{d:g}-B{b:g}-s{seed}"
                records = runner.search(method("grid"), task, store=where, study=name)
                criteria[c, i, :, s] = _criteria(records, lr, name)
    grid = GridResult(
        objective.name,
        tokens,
        batch,
        np.tile(lr, (len(tokens), 1)),
        settings,
        config.seeds,
        criteria,
        np.full(criteria.shape[:-1], np.nan),
    )
    return WorldRuns((grid,))


def _criteria(records: Sequence[TrialRecord], lr: np.ndarray, study: str) -> np.ndarray:
    """(lrs, criteria) of one study: final loss, and mean loss of the curve's last quarter; gradients are unknown."""
    out = np.full((len(lr), len(CRITERIA)), np.inf)
    seen = set()
    for r in records:
        at = int(np.argmin(np.abs(np.log(lr / r.lr))))
        if abs(np.log(lr[at] / r.lr)) > 1e-6:
            continue
        seen.add(at)
        if r.state != "complete":
            continue
        out[at, CRITERIA.index("final-loss")] = r.loss
        if r.curve is not None:
            late = [v for t, v in zip(r.curve.tokens, r.curve.loss, strict=True) if t >= 0.75 * r.tokens]
            if late:
                out[at, CRITERIA.index("tail-loss")] = float(np.mean(late))
    if len(seen) < len(lr):
        raise AttributionError(
            f"study {study} finished {len(seen)} of {len(lr)} learning rates: run it again to resume"
        )
    return out
