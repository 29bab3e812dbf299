"""The recorder: an unbiased noise scale, replayed points, the plateau."""

import math

import pytest
import torch

from metaopt_hpo.training.gradients import NoiseScale
from metaopt_hpo.training.recorder import Recorder


def test_noise_scale_recovers_a_planted_one() -> None:
    generator = torch.Generator().manual_seed(0)
    dim, sigma = 50, 3.0
    mean = torch.full((dim,), 0.2, dtype=torch.float64)
    truth = dim * sigma**2 / float(mean.square().sum())  # in samples
    ratios = []
    for _ in range(200):
        noise = NoiseScale()
        for _ in range(40):
            halves = mean + sigma / math.sqrt(500) * torch.randn(
                2, dim, generator=generator, dtype=torch.float64
            )
            noise.update(halves[0].square().sum(), halves.mean(0).square().sum(), 500.0, 1000.0)
        ratios.append(noise.value())
    assert torch.tensor(ratios).median() == pytest.approx(truth, rel=0.1)


def test_noise_scale_is_nan_without_data_and_survives_bad_pairs() -> None:
    noise = NoiseScale()
    assert math.isnan(noise.value())
    good = (torch.tensor(2.0), torch.tensor(1.5), 1.0, 2.0)
    noise.update(*good)
    before = noise.value()
    noise.update(torch.tensor(math.nan), torch.tensor(1.0), 1.0, 2.0)
    assert noise.value() == pytest.approx(before)


def test_replayed_points_replace_what_followed() -> None:
    recorder = Recorder()
    for t in (1, 2, 4, 8):
        recorder.report(t, float(t), step_size=1.0, grad_norm=1.0)
    recorder.report(4, -4.0, step_size=1.0, grad_norm=1.0)
    curve = recorder.curve()
    assert curve is not None
    assert curve.tokens == (1, 2, 4)
    assert curve.loss == (1, 2, -4)


def test_plateau_is_the_median_between_warmup_and_cooldown() -> None:
    recorder = Recorder()
    for t in range(1, 101):
        size = 1e-6 if t < 25 else 0.5 if t > 70 else 0.01 * (1 + (t % 2))
        recorder.report(t, 1.0, step_size=size, grad_norm=1.0)
    value, spread = recorder.plateau()
    assert 0.01 <= value <= 0.02
    assert spread == pytest.approx(math.log(2) / 2, rel=0.05)
