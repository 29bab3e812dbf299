"""The runs of the experiment: every setting of a world on a grid of (B, D) cells, resumable and reproducible.

Grids are stored as Parquet, one file a world and noise level; a stored grid of the same config is not run again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from metaopt_hpo.atomic import write_text
from metaopt_hpo.attribution.config import ExperimentConfig
from metaopt_hpo.attribution.estimand import AttributionError
from metaopt_hpo.attribution.levels import Setting
from metaopt_hpo.attribution.pilot import beyond, pilot_grid
from metaopt_hpo.attribution.stepping import FLOOR_FRACTION, GridResult, World, run_grid
from metaopt_hpo.attribution.storage import as_kept, load_grid, save_grid

EXTENSIONS = 2
"""How often a grid is widened by two learning rates where a loss is lowest at its edge."""
GRID_SUFFIX = ".grid.piece"


@dataclass(frozen=True)
class WorldRuns:
    """All grids of one world, one a noise level; they share cells and seeds."""

    grids: tuple[GridResult, ...]

    def of(self, setting: Setting) -> GridResult:
        """The grid that holds a setting."""
        for grid in self.grids:
            if setting in grid.settings:
                return grid
        raise AttributionError(f"setting {setting.label} was not run")

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Every setting that was run."""
        return tuple(s for g in self.grids for s in g.settings)


def run_world(
    world: World,
    config: ExperimentConfig,
    *,
    out: Path | None = None,
    deadline: float | None = None,
    runner: Callable[..., GridResult] = run_grid,
) -> WorldRuns | None:
    """All settings of one world, from `out` where stored; None when the deadline came first (call again to go on).

    Args:
        out: folder of Parquet files; None keeps nothing.
        deadline: time.monotonic() after which no further grid is started.
        runner: what runs a grid, with the face of `run_grid`.
    """
    grids = []
    for noise, settings in config.settings(world.noises).items():
        whole = None if out is None else out / f"attribution_{world.name}_{noise}.parquet"
        mark = config.fingerprint(world.name, noise, settings)
        stored = _stored(whole, mark)
        if stored is None:
            stored = _run_pieces(world, config, settings, whole, mark, deadline, runner)
            if stored is None:
                return None
        grids.append(stored)
    return WorldRuns(tuple(grids))


def _run_pieces(
    world: World,
    config: ExperimentConfig,
    settings: Sequence[Setting],
    whole: Path | None,
    mark: str,
    deadline: float | None,
    runner: Callable[..., GridResult],
) -> GridResult | None:
    """One grid, piece by piece; pieces are kept beside `whole` until it is complete."""
    d, b = config.cells
    pieces, lr = [], None
    middle = float(np.exp(np.log(b).mean()))
    kept = [] if whole is None else [whole.with_suffix(GRID_SUFFIX)]
    for number, cells in enumerate(config.pieces()):
        path = None if whole is None else whole.with_suffix(f".{number}.piece")
        done = _stored(path, mark)
        if done is None:
            if deadline is not None and time.monotonic() > deadline:
                return None
            lr = _grid_of(world, settings, config, whole, mark) if lr is None else lr
            found = runner(
                world,
                settings,
                tokens=d[cells],
                batch=b[cells],
                lr=lr[cells],
                seeds=config.seeds,
                device=config.device,
                middle_batch=middle,
                floor_lr=FLOOR_FRACTION * float(np.exp(np.median(np.log(lr)))),
            )
            done = as_kept(found)
            if path is not None and config.piece:
                save_grid(done, path, mark)
        if path is not None and path.exists():
            kept.append(path)
        pieces.append(done)
    grid = _joined(pieces)
    floor = FLOOR_FRACTION * float(np.exp(np.median(np.log(grid.lr))))
    for _ in range(EXTENSIONS):
        more = beyond(grid)
        if more is None:
            break
        wider = runner(
            world,
            settings,
            tokens=grid.tokens,
            batch=grid.batch,
            lr=more,
            seeds=config.seeds,
            device=config.device,
            middle_batch=middle,
            floor_lr=floor,
        )
        grid = _side_by_side(grid, as_kept(wider))
    if whole is not None:
        save_grid(grid, whole, mark)
        for path in kept:
            path.unlink(missing_ok=True)
    return grid


def _side_by_side(first: GridResult, second: GridResult) -> GridResult:
    """Two grids of the same cells and settings as one, ordered by learning rate."""
    lr = np.concatenate([first.lr, second.lr], axis=1)
    order = np.argsort(lr[0])
    criteria = np.concatenate([first.criteria, second.criteria], axis=2)[:, :, order]
    growth = np.concatenate([first.growth, second.growth], axis=2)[:, :, order]
    return replace(first, lr=lr[:, order], criteria=criteria, growth=growth)


def _grid_of(
    world: World, settings: Sequence[Setting], config: ExperimentConfig, whole: Path | None, mark: str
) -> np.ndarray:
    """The pilot's grid; kept beside the pieces, so that resuming in slices pays for one pilot."""
    path = None if whole is None or not config.piece else whole.with_suffix(GRID_SUFFIX)
    if path is not None and path.exists():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            lr = np.array(known["lr"], dtype=float)
            if known["fingerprint"] == mark and lr.ndim == 2 and (np.isfinite(lr) & (lr > 0)).all():
                return lr
        except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
            pass  # damaged: it is found again
    lr = pilot_grid(world, settings, config)
    if path is not None:
        write_text(path, json.dumps({"fingerprint": mark, "lr": lr.tolist()}))
    return lr


def _stored(path: Path | None, mark: str) -> GridResult | None:
    return load_grid(path, mark) if path is not None and path.exists() else None


def _joined(pieces: Sequence[GridResult]) -> GridResult:
    """Pieces of one grid, which share settings, seeds and the width of the lr grid."""
    if len(pieces) == 1:
        return pieces[0]
    first = pieces[0]
    fields = ("tokens", "batch", "lr", "criteria", "growth")
    arrays = {f: np.concatenate([getattr(p, f) for p in pieces]) for f in fields}
    return GridResult(first.world, settings=first.settings, seeds=first.seeds, **arrays)
