"""Constants of the bound measured on runs whose constants are known, and what a run must record for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from metaopt_hpo.attribution import AttributionError, estimate_constants, probe_run
from metaopt_hpo.attribution.constants import fitted_floor
from metaopt_hpo.attribution.worlds import Quadratic

WORLD = Quadratic("known", source=0.5, capacity=0.5, dim=32, sigma=2.0)


@pytest.fixture(scope="module")
def gaussian():
    return probe_run(WORLD, lr=1e-3, batch=16, steps=400, noise="gaussian", probes=64)


class TestKnownConstants:
    def test_smoothness_noise_and_gap(self, gaussian):
        constants = estimate_constants(gaussian)
        # A sign step moves every coordinate by η, so the ℓ1 secant is exactly Σh; E‖noise‖₁ = d·σ·√(2/π).
        assert constants.smoothness.value == pytest.approx(float(WORLD.h.sum()), rel=1e-3)
        assert 32 * 2.0 * np.sqrt(2 / np.pi) in constants.noise
        assert constants.delta == pytest.approx(1.0, abs=0.1)
        assert 0.5 in constants.q
        assert constants.tail_index.high == 2.0
        assert constants.grad_norm_falls

    def test_noise_scale(self, gaussian):
        """tr Σ / |G|² with tr Σ = dσ² and |G|² averaged along the run."""
        w = WORLD.start([0])
        square = float(WORLD.gradient(w).square().sum())
        constants = estimate_constants(replace(gaussian, pairs=_pairs_at(w)))
        assert constants.noise_scale.value == pytest.approx(32 * 4 / square, rel=0.25)

    def test_heavy_tails(self):
        run = probe_run(WORLD, lr=1e-3, batch=16, steps=400, noise="heavy", probes=400, batches=[1, 32, 1024])
        constants = estimate_constants(run)
        assert constants.tail_index.value == pytest.approx(1.5, abs=0.15)
        assert constants.tail_index.high < 2
        assert constants.bound().q < 0.5

    def test_bound_from_a_run_holds_for_that_run(self, gaussian):
        constants = estimate_constants(gaussian)
        bound = constants.bound(worst_case=True)
        assert gaussian.grad_norm.mean() <= bound.value(1e-3, 0.1, 16, 400)
        assert bound.unit == "sample"

    def test_floor(self):
        k = np.arange(200.0)
        assert fitted_floor(k, 1.7 + 2 * (1 + k) ** -0.7) == pytest.approx(1.7, abs=0.02)


class TestBadInput:
    def test_what_is_missing_is_named(self, gaussian):
        with pytest.raises(ValueError, match="unit must name"):
            estimate_constants(replace(gaussian, unit=""))
        with pytest.raises(AttributionError, match="two batch sizes"):
            estimate_constants(replace(gaussian, halves={16: gaussian.halves[16]}))
        with pytest.raises(AttributionError, match="record at least 8"):
            estimate_constants(replace(gaussian, losses=gaussian.losses[:4]))
        with pytest.raises(AttributionError, match="at least one secant"):
            estimate_constants(replace(gaussian, secants=np.array([])))
        with pytest.raises(AttributionError, match="never fell"):
            estimate_constants(replace(gaussian, losses=np.linspace(1, 2, len(gaussian.losses))))

    def test_too_short_a_run(self):
        with pytest.raises(ValueError, match="at least the 32 probes"):
            probe_run(WORLD, lr=1e-3, batch=16, steps=4)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lr": 0.0}, "lr must be positive"),
            ({"a": 1.5}, r"momentum a must lie in \(0, 1\]"),
            ({"a": 0.0}, r"momentum a must lie in \(0, 1\]"),
            ({"batch": 0}, "batch and batches must be at least 1"),
            ({"batches": (0, 4)}, "batch and batches must be at least 1"),
        ],
    )
    def test_runs_that_cannot_be(self, options, message):
        with pytest.raises(ValueError, match=message):
            probe_run(WORLD, **{"lr": 1e-3, "batch": 16, "steps": 64, **options})


def _pairs_at(w):
    stream = WORLD.stream("gaussian", 64, 1, torch.Generator().manual_seed(1))
    at = w[None, None, None].expand(1, 1, 1, 1, -1).clone()
    rows = []
    for _ in range(400):
        g = [
            WORLD.noisy_gradient(at, "gaussian", [64], [next(stream)], torch.empty_like(at)).clone()
            for _ in range(2)
        ]
        rows.append((float((g[0] - g[1]).square().sum()), float((g[0] * g[1]).sum())))
    return {64: np.array(rows)}
