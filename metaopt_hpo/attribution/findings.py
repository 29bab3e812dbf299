"""What the runs of one world say: planes of every level, the decomposition of practice's gap, unusable criteria."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np

from metaopt_hpo.attribution.config import ExperimentConfig
from metaopt_hpo.attribution.decomposition import Decomposition, decompose
from metaopt_hpo.attribution.estimand import (
    Plane,
    Resample,
    fit_plane,
    gradient_norm_rises,
)
from metaopt_hpo.attribution.experiment import WorldRuns
from metaopt_hpo.attribution.levels import CRITERIA, IDEAL, PRACTICE, TUNED_MOMENTA, Criterion, Setting
from metaopt_hpo.attribution.protocol import ProtocolLevel, protocol_levels
from metaopt_hpo.attribution.proxy import ProxyCheck, proxy_checks


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
    protocol: tuple[ProtocolLevel, ...]
    """What a study of the practice setting with another grid of learning rates would report."""
    seconds: float
    ideal: Setting
    practice: Setting
    tuned: dict[Criterion, Plane] = field(default_factory=dict)
    """Momentum tuned in every cell (lower envelope over a grid of a)."""
    proxy: tuple[ProxyCheck, ...] = ()
    """The generalised proxy's predictions for the final loss, all other assumptions met."""

    def plane(self, setting: Setting, criterion: Criterion) -> Plane:
        """The fitted plane of one level."""
        return self.planes[setting.label, criterion]


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
        protocol=protocol_levels(
            runs.of(practice), practice, resample, planes[practice.label, "final-loss"], b=config.b
        ),
        seconds=time.perf_counter() - start,
        ideal=ideal,
        practice=practice,
        tuned=tuned,
        proxy=proxy_checks(planes[ideal.label, "final-loss"], source=source, capacity=capacity),
    )
