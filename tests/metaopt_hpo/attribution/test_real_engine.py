"""Tiers 2 and 3 end to end on tiny problems: the GPU's configuration on the CPU, real studies of a real engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import entry_points

import numpy as np
import pytest
import torch

from metaopt_hpo.attribution import ExperimentConfig, attribute, run_tier, tier_jobs
from metaopt_hpo.attribution.engine_runs import run_with_engine
from metaopt_hpo.attribution.levels import CRITERIA
from metaopt_hpo.attribution.neural import Bigram
from metaopt_hpo.attribution.tiers import Job
from metaopt_hpo.comparison.engine import ENTRY_POINT_GROUP
from metaopt_hpo.strategies import make
from metaopt_hpo.workloads.base import step_generator, train

TRUTH = torch.tensor([1.0, -0.5, 0.25])
LR_BOUNDS, POINTS = (2.0**-8, 1.0), 5


@dataclass(frozen=True)
class Line:
    """Least squares with three weights and noisy targets: the smallest workload that really trains."""

    batch: int = 32
    name = "line"
    size = 3
    flops_per_token = 12.0

    def model(self, seed):
        model = torch.nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            model.weight.zero_()
        return model

    def with_batch(self, batch):
        return replace(self, batch=int(batch))

    def losses(self, model, step, seed, parts):
        generator = step_generator(seed, step)
        x = torch.randn(self.batch, 3, generator=generator)
        y = x @ TRUTH + 0.5 * torch.randn(self.batch, generator=generator)
        return tuple(
            (model(a)[:, 0] - b).square().mean() for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True)
        )

    def held_out_loss(self, model):
        return float((model.weight[0] - TRUTH).square().sum()) + 0.25


SMALL = ExperimentConfig(
    tokens=(64, 96, 128, 256, 2048),
    batch=(40, 48, 56, 64),
    seeds=(0, 1, 2),
    factors=("schedule",),
    method="pairs",
    levels=False,
    base_noise="minibatch",
)


@pytest.fixture(scope="module")
def runs():
    pytest.importorskip("optuna", reason="Optuna is not installed")
    if "optuna" not in {e.name for e in entry_points(group=ENTRY_POINT_GROUP)}:
        pytest.skip("the engine of metaopt-hpo for Optuna is not installed")
    return run_with_engine("optuna", Line(), SMALL, lr_bounds=LR_BOUNDS, points=POINTS)


class TestOptunaStudies:
    def test_every_trial_is_the_run_it_stands_for(self, runs):
        grid = runs.grids[0]
        losses = grid.criteria[..., CRITERIA.index("final-loss")]
        assert losses.shape == (20, 2, POINTS, 3)
        assert np.isfinite(losses).all()
        rng = np.random.default_rng(0)
        for cell, setting, at, seed in zip(*(rng.integers(0, n, 6) for n in losses.shape), strict=True):
            strategy = make(grid.settings[setting].schedule, lr=float(grid.lr[cell, at]))
            alone = train(
                Line(int(grid.batch[cell])), strategy, tokens=grid.tokens[cell], seed=grid.seeds[seed]
            )
            assert losses[cell, setting, at, seed] == pytest.approx(alone.record().loss, rel=1e-6)

    def test_they_can_be_attributed(self, runs):
        finding = attribute(runs, SMALL)
        parts = {p.name: p.phi.value for p in finding.decomposition.parts}
        assert set(parts) == {"slack", "schedule"}
        assert sum(parts.values()) == pytest.approx(finding.decomposition.total.value, abs=1e-9)
        assert np.isfinite(list(parts.values())).all()
        assert "avg-grad" in finding.unusable


def test_a_grid_too_short_to_attribute_is_refused_before_any_trial():
    with pytest.raises(ValueError, match="points must be at least 5"):
        run_with_engine("optuna", Line(), SMALL, points=4)


def test_the_gpu_configuration_runs_on_the_cpu_and_resumes(tmp_path):
    theirs = tier_jobs(2)[0].config
    config = replace(theirs, tokens=SMALL.tokens, batch=(4, 8, 16, 32), device="cpu")
    pairs = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    jobs = [Job(lambda: Bigram(width=4, pairs=pairs), config)]
    result = run_tier(2, out=tmp_path, jobs=jobs)
    finding = result.findings[0]
    parts = {p.name: p.phi.value for p in finding.decomposition.parts}
    assert set(theirs.factors) | {"slack"} <= set(parts)
    assert sum(parts.values()) == pytest.approx(finding.decomposition.total.value, abs=1e-9)
    again = run_tier(2, out=tmp_path, jobs=jobs, budget_seconds=0.0)  # no time to run anything: all is stored
    assert again is not None
    assert again.rows() == result.rows()
