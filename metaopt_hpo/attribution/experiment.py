"""The controlled experiment: one config format from quadratics in seconds to a cluster, resumable, reproducible.

A run of the experiment simulates every setting of every world on a grid of (B, D) cells, then attributes each world's
gap. Grids are stored as Parquet, one file a world and noise level; a stored grid of the same config is not run again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from metaopt_hpo.attribution.decomposition import Decomposition, decompose
from metaopt_hpo.attribution.estimand import (
    AttributionError,
    Plane,
    Resample,
    fit_plane,
    gradient_norm_rises,
    joint_argmin_exponent,
)
from metaopt_hpo.attribution.levels import (
    CRITERIA,
    IDEAL,
    PRACTICE,
    TUNED_MOMENTA,
    Criterion,
    Noise,
    Setting,
    factorial,
    single_changes,
)
from metaopt_hpo.attribution.proxy import ProxyCheck, proxy_checks
from metaopt_hpo.attribution.stepping import FLOOR_FRACTION, GridResult, World, run_grid
from metaopt_hpo.attribution.storage import load_grid, save_grid
from metaopt_hpo.theory.minima import log_parabola

PILOT_LR = 2.0 ** np.arange(-16, 8)
"""Range of the pilot: covers everything from a frozen run to one that jumps across the whole problem."""
GRID_RATIO = 2.0
"""Ratio of neighbouring learning rates: the log-parabola resolves far below it."""
EXTENSIONS = 2
"""How often a grid is widened by two learning rates where a loss is lowest at its edge."""
MARGIN = 1.5
"""How far beyond the pilot's optima the grid reaches, in ratios."""


GRID_SUFFIX = ".grid.piece"
REVISION = 2
"""Of the simulation: raised when the same configuration and seeds give other numbers, so that none are mixed."""


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """What to run on one world.

    Args:
        tokens, batch: budgets D (>= 5 over >= 1.5 decades) and batches B (>= 4); the grid is their product.
        seeds: >= 3; start, noise and minibatches are functions of them.
        factors: simulated factors of the full factorial; the criterion comes for free.
        method: "shapley" runs all combinations of the factors; "pairs" only single changes, pairs and all at once, for
            worlds where runs are dear.
        levels: whether the levels outside the factorial are run too, one at a time.
        b: batch exponent of the decomposition; 0.571 is Step Law's, where the published gap is largest.
        bootstrap: >= 500.
        piece: cells per stored piece, longest first, so that dear worlds resume in slices; 0 runs a grid at once.
        device: torch device of the grid.
    """

    tokens: tuple[int, ...] = tuple(2**i for i in range(11, 17))
    batch: tuple[int, ...] = tuple(2**i for i in range(2, 7))
    seeds: tuple[int, ...] = tuple(range(8))
    factors: tuple[str, ...] = ("schedule", "init", "noise", "warmup")
    method: Literal["shapley", "pairs"] = "shapley"
    levels: bool = True
    base_noise: Noise = "gaussian"
    """The ideal level of noise; "minibatch" on worlds that cannot produce Gaussian noise."""
    b: float = 0.571
    bootstrap: int = 500
    seed: int = 0
    """Of the bootstrap."""
    piece: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if len(self.tokens) < 5 or max(self.tokens) / min(self.tokens) < 10**1.5:
            raise ValueError(f"tokens must hold at least 5 budgets over 1.5 decades, got {self.tokens!r}")
        if len(set(self.batch)) < 4:
            raise ValueError(f"batch must hold at least 4 values, got {self.batch!r}")
        if max(self.batch) > min(self.tokens):
            raise ValueError(
                f"batch {max(self.batch)} exceeds the smallest budget of {min(self.tokens)} tokens"
            )
        if len(set(self.seeds)) < 3:
            raise ValueError(f"seeds must hold at least 3 values, got {self.seeds!r}")
        unknown = [f for f in self.factors if f not in ("schedule", "init", "noise", "warmup")]
        if unknown:
            raise ValueError(f"factors may be schedule, init, noise and warmup, got {unknown[0]!r}")
        if self.method not in ("shapley", "pairs"):
            raise ValueError(f"method must be shapley or pairs, got {self.method!r}")
        if self.bootstrap < 500:
            raise ValueError(f"bootstrap must be at least 500, got {self.bootstrap!r}")

    @property
    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, batch) of every cell."""
        d, b = np.meshgrid(self.tokens, self.batch, indexing="ij")
        return d.ravel().astype(float), b.ravel().astype(float)

    def pieces(self) -> list[np.ndarray]:
        """Indices of the cells of each piece."""
        d, b = self.cells
        order = np.argsort(-d / b, kind="stable")
        size = self.piece or len(order)
        return (
            [order[i : i + size] for i in range(0, len(order), size)]
            if self.piece
            else [np.arange(len(order))]
        )

    def settings(self, noises: Sequence[Noise]) -> dict[Noise, list[Setting]]:
        """Settings to run at each noise level of a world."""
        ideal = replace(IDEAL, noise=self.base_noise)
        cube = [
            replace(s, noise=self.base_noise if s.noise == "gaussian" else s.noise) for s in self._corners()
        ]
        out: dict[Noise, list[Setting]] = {}
        for s in dict.fromkeys([*cube, ideal]):
            out.setdefault(s.noise, []).append(s)
        if self.levels:
            out[self.base_noise] += [
                s for s in single_changes(self.base_noise) if s not in out[self.base_noise]
            ]
            for noise in noises:
                out.setdefault(noise, [replace(IDEAL, noise=noise)])
        missing = [n for n in out if n not in noises]
        if missing:
            raise AttributionError(
                f"the world cannot produce {missing[0]} noise: leave 'noise' out of factors"
            )
        return out

    def _corners(self) -> list[Setting]:
        """Combinations of ideal and practice levels that the decomposition needs."""
        cube = factorial(self.factors)
        if self.method == "shapley":
            return cube
        changed = [sum(getattr(s, f) != getattr(IDEAL, f) for f in self.factors) for s in cube]
        return [s for s, n in zip(cube, changed, strict=True) if n <= 2 or n == len(self.factors)]

    def fingerprint(self, world: str, noise: str, settings: Sequence[Setting]) -> str:
        """Identifies a grid: stored results of another config are never mixed in."""
        labels = [s.label for s in settings]
        parts = [REVISION, world, noise, self.tokens, self.batch, self.seeds, self.piece, labels]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class WorldFinding:
    """What one world says."""

    world: str
    config: ExperimentConfig
    planes: dict[tuple[str, Criterion], Plane]
    """By (setting label, criterion)."""
    decomposition: Decomposition
    unusable: dict[Criterion, str]
    """Criteria that cannot be used here, with the reason; empty where all can."""
    joint_argmin: tuple[float, float]
    """Exponents of (lr, batch) in D that a study of joint argmins would report for the practice setting."""
    seconds: float
    ideal: Setting
    practice: Setting
    tuned: dict[Criterion, Plane] = field(default_factory=dict)
    """Momentum tuned in every cell (lower envelope over a grid of a)."""
    coarse: Plane | None = None
    """Practice setting with every other learning rate of the grid: what a coarser grid would report."""
    proxy: tuple[ProxyCheck, ...] = ()
    """The generalised proxy's predictions for the final loss, all other assumptions met."""

    def plane(self, setting: Setting, criterion: Criterion) -> Plane:
        """The fitted plane of one level."""
        return self.planes[setting.label, criterion]


def pilot_grid(world: World, settings: Sequence[Setting], config: ExperimentConfig) -> np.ndarray:
    """Learning rates (cells, lrs) around the optima of a pilot, so that few are censored.

    The pilot's four cells lie at the ends of the budgets, and at the largest and a middle batch: the smallest would
    cost most of it, and ln η* is nearly linear in ln B, so that a plane through a setting's four optima reaches there.
    """
    d, b = config.cells
    middle = b[b <= np.sqrt(b.min() * b.max()) * (1 + 1e-9)].max()
    corners = np.array([(x, y) for x in (d.min(), d.max()) for y in (middle, b.max())])
    chosen = list(dict.fromkeys([settings[0], settings[-1], *(s for s in settings if s.a == 1.0)]))
    chosen += [s for s in settings if s.schedule != "constant" and s not in chosen][:1]
    pilot = run_grid(
        world,
        chosen,
        tokens=corners[:, 0].tolist(),
        batch=corners[:, 1].tolist(),
        lr=np.tile(PILOT_LR, (4, 1)),
        seeds=config.seeds[:2],
        device=config.device,
    )
    optima = []
    for criterion in CRITERIA:
        found = [log_parabola(np.log(PILOT_LR), np.log(pilot.of([s], criterion).mean(-1))) for s in chosen]
        # A criterion that prefers the lowest lr of all wants an idle run: no grid holds its optimum, so none is laid.
        if not any(np.isneginf(f.low).any() for f in found):
            optima += [0.5 * (f.low + np.where(np.isinf(f.high), f.low, f.high)) for f in found]
    if not optima or not np.isfinite(optima).all():
        raise AttributionError(
            f"no criterion of {world.name} has an optimum above the lowest lr, {PILOT_LR[0]:g}: it learns nothing"
        )

    def design(cells: np.ndarray) -> np.ndarray:
        return np.column_stack([np.ones(len(cells)), np.log(cells)])

    planes = np.linalg.lstsq(design(corners), np.transpose(optima), rcond=None)[0]
    centre = np.median(planes, axis=1)
    ends = design(np.array([(x, y) for x in (d.min(), d.max()) for y in (b.min(), b.max())]))
    away = ends @ (planes - centre[:, None])
    step = np.log(GRID_RATIO)
    low, high = away.min() - MARGIN * step, away.max() + MARGIN * step
    offsets = np.arange(low, high + step, step)
    return np.asarray(np.exp((design(np.column_stack([d, b])) @ centre)[:, None] + offsets))


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
            done = runner(
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
            if path is not None and config.piece:
                save_grid(done, path, mark)
        if path is not None and path.exists():
            kept.append(path)
        pieces.append(done)
    grid = _joined(pieces)
    floor = FLOOR_FRACTION * float(np.exp(np.median(np.log(grid.lr))))
    for _ in range(EXTENSIONS):
        more = _beyond(grid)
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
        grid = _side_by_side(grid, wider)
    if whole is not None:
        save_grid(grid, whole, mark)
        for path in kept:
            path.unlink(missing_ok=True)
    return grid


def _beyond(grid: GridResult) -> np.ndarray | None:
    """Learning rates (cells, 2) past an edge at which a loss is lowest somewhere; None where no optimum is cut off."""
    losses = np.stack([grid.of([s], c).mean(-1) for s in grid.settings for c in ("final-loss", "tail-loss")])
    best = np.argmin(losses, axis=-1)
    ratio = GRID_RATIO ** np.array([1.0, 2.0])
    if (best == losses.shape[-1] - 1).any():
        return np.asarray(grid.lr[:, -1:] * ratio)
    return np.asarray(grid.lr[:, :1] / ratio[::-1]) if (best == 0).any() else None


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
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["fingerprint"] == mark:
            return np.array(known["lr"])
    lr = pilot_grid(world, settings, config)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"fingerprint": mark, "lr": lr.tolist()}), encoding="utf-8")
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


def attribute(
    runs: WorldRuns, config: ExperimentConfig, *, source: float | None = None, capacity: float | None = None
) -> WorldFinding:
    """Planes of every level and criterion, the decomposition of practice's gap, and which criteria mean nothing here.

    Args:
        source, capacity: the world's s and r where they are planted, for the checks of the proxy.

    Raises:
        AttributionError: the runs lack a setting of the factorial, or a plane cannot be fitted.
    """
    start = time.perf_counter()
    first = runs.grids[0]
    resample = Resample.draw(
        len(first.tokens), len(first.seeds), bootstrap=config.bootstrap, seed=config.seed
    )
    ideal = replace(IDEAL, noise=config.base_noise)
    practice = replace(ideal, **{f: getattr(PRACTICE, f) for f in config.factors})
    unusable: dict[Criterion, str] = {
        c: "not measured in these runs"
        for c in CRITERIA
        if not np.isfinite(runs.of(ideal).of([ideal], c)).any()
    }
    if "avg-grad" not in unusable:
        rising = max(gradient_norm_rises(runs.of(s), s) for s in (ideal, practice))
        if rising > 0.5:
            reason = (
                f"‖g‖* rises at the loss-optimal lr in {rising:.0%} of cells: its minimum favours idle runs"
            )
            unusable = {"avg-grad": reason, "tail-grad": reason}
    usable = [c for c in CRITERIA if c not in unusable]
    planes: dict[tuple[str, Criterion], Plane] = {}
    for setting in runs.settings:
        for criterion in usable:
            planes[setting.label, criterion] = fit_plane(runs.of(setting), [setting], criterion, resample)

    def corner(changed: frozenset[str]) -> tuple[Setting, Criterion]:
        levels = {f: getattr(PRACTICE, f) for f in changed if f != "criterion"}
        start_at: Criterion = "avg-grad" if not unusable else "final-loss"
        return replace(ideal, **levels), "final-loss" if "criterion" in changed else start_at

    def gaps(changed: frozenset[str]) -> np.ndarray:
        setting, criterion = corner(changed)
        return planes[setting.label, criterion].gap_samples(config.b)

    factors = (*(() if unusable else ("criterion",)), *config.factors)
    censored = {"slack": planes[ideal.label, corner(frozenset())[1]].censored}
    for f in factors:
        pair = [
            corner(frozenset()),
            corner(frozenset({f})),
            corner(frozenset(factors)),
            corner(frozenset(factors) - {f}),
        ]
        censored[f] = max(planes[s.label, c].censored for s, c in pair)
    tuned: dict[Criterion, Plane] = {}
    momenta = [replace(ideal, a=a) for a in TUNED_MOMENTA]
    if all(m in runs.settings for m in momenta):
        tuned = {c: fit_plane(runs.of(ideal), momenta, c, resample) for c in usable}
    return WorldFinding(
        world=first.world,
        config=config,
        planes=planes,
        decomposition=decompose(factors, gaps, censored=censored, method=config.method),
        unusable=unusable,
        joint_argmin=joint_argmin_exponent(runs.of(practice), [practice], "final-loss"),
        seconds=time.perf_counter() - start,
        ideal=ideal,
        practice=practice,
        tuned=tuned,
        coarse=fit_plane(runs.of(practice), [practice], "final-loss", resample, every=2),
        proxy=proxy_checks(planes[ideal.label, "final-loss"], source=source, capacity=capacity),
    )
