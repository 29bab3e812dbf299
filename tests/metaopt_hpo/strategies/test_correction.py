"""When a run commits to a step size, and what it multiplies the adapted one with."""

import math

import pytest
import torch
from torch import nn

from metaopt_hpo.optim import AdamW, Lion
from metaopt_hpo.strategies import make
from metaopt_hpo.strategies.correction import NORMALISED, SIGN, find_fraction, prior_correction


def test_a_run_commits_once_the_climb_is_over() -> None:
    steps = {h: find_fraction(h, AdamW()) * h for h in (100, 256, 512, 1000, 2000, 10**6)}
    assert steps == pytest.approx({100: 20, 256: 51.2, 512: 100, 1000: 120, 2000: 240, 10**6: 120_000})
    assert find_fraction(2000, Lion()) * 2000 == pytest.approx(316, abs=1), (
        "its search climbs √10 times slower"
    )
    strategy = make("metaoptimize")
    assert strategy.horizon_find(512) == find_fraction(512, AdamW())  # type: ignore[attr-defined]
    assert make("metaoptimize", find=0.3).horizon_find(512) == 0.3  # type: ignore[attr-defined]


def usual(horizon: int, rule: object = None, model: object = None, find: float | None = None) -> float:
    rule = rule or AdamW()
    part = find_fraction(horizon, rule) if find is None else find  # type: ignore[arg-type]
    return prior_correction(horizon, part, rule, model)  # type: ignore[arg-type]


def test_short_runs_are_corrected_upwards_and_no_horizon_is_off_the_scale() -> None:
    found = [usual(h) for h in (20, 250, 500, 1000, 2000, 10**6)]
    assert found[0] >= found[1] > found[2] > 1 > found[3]
    assert all(0.5 < f <= 2 for f in found)


def test_lions_ramp_is_half_as_long_unless_one_is_asked_for() -> None:
    asked: list[dict[str, object]] = [{}, {"base": "lion"}, {"base": "lion", "warmup": 0.2}]
    assert [make("metaoptimize", **a).ramp() for a in asked] == [0.1, 0.05, 0.2]  # type: ignore[attr-defined]


def test_a_later_commitment_is_corrected_by_more() -> None:
    assert usual(2000) < usual(2000, find=0.2) < usual(2000, find=0.4)
    assert usual(2000, find=0.05) == usual(2000)


def test_batch_norm_and_signs_have_factors_of_their_own() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert usual(2000, model=model) == pytest.approx(NORMALISED * usual(2000))
    assert usual(2000, Lion()) == pytest.approx(SIGN * usual(2000))
    assert usual(2000, model=list(model.parameters())) == usual(2000)


def test_over_signs_the_factor_rises_with_the_horizon_and_over_others_it_falls() -> None:
    assert usual(250, Lion()) < usual(500, Lion()) < usual(1000, Lion()) < usual(2000, Lion())
    assert usual(2000, Lion()) == usual(8000, Lion())
    assert usual(250) > usual(500) > usual(1000) == usual(8000)


@pytest.mark.parametrize("normalised", [False, True])
def test_a_run_holds_the_mean_of_the_second_half_times_the_correction(normalised: bool) -> None:
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(16)] if normalised else []
    model = nn.Sequential(nn.Linear(8, 16), *middle, nn.Tanh(), nn.Linear(16, 1))
    run = make("metaoptimize").build(model, 300)
    sizes = []
    for step in range(300):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x.square().sum(1, keepdim=True) / 8 - x[:, :1]).square().mean()
        loss.backward()
        run.step(loss.detach())
        sizes.append(float(run.step_sizes()[0]))
    mean = math.exp(sum(map(math.log, sizes[30:60])) / 30)
    # the last step seen has moved by one meta step already
    assert sizes[61] == pytest.approx(mean * usual(300, model=model), rel=0.05)
    assert len(set(sizes[61:210])) == 1
    assert sizes[299] < 0.05 * sizes[209]
