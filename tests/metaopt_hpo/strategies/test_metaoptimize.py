"""The metaoptimize strategy: find, correct, hold, cool down."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from metaopt_hpo.strategies import make


def run_quadratic(horizon: int = 100, **options: object):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = nn.Linear(8, 1, bias=False)
    run = make("metaoptimize", **options).build(model, horizon)
    sizes, losses = [], []
    for _ in range(horizon):
        loss = (model(torch.ones(1, 8)) - 3).square().sum()
        loss.backward()
        run.step(loss.detach())
        sizes.append(float(run.step_sizes()[0]))
        losses.append(loss.item())
    return run, sizes, losses


def test_without_meta_steps_it_is_a_wsd_schedule() -> None:
    _, sizes, _ = run_quadratic(lr=0.02, meta_lr=0.0, warmup=0.1, cooldown=0.2)
    assert sizes[:10] == pytest.approx([0.02 * (i + 1) / 10 for i in range(10)])
    assert sizes[10:80] == pytest.approx([0.02] * 70)
    assert sizes[80:] == pytest.approx([0.02 * (1 - i / 20) for i in range(20)])


def test_a_start_far_too_low_is_raised_and_the_loss_falls_further() -> None:
    _, sizes, losses = run_quadratic(lr=1e-4)
    _, _, stuck = run_quadratic(lr=1e-4, meta_lr=0.0)
    assert max(sizes) > 3e-4
    assert losses[-1] < 0.9 * stuck[-1]


def test_it_commits_to_the_mean_found_times_the_correction() -> None:
    options = {"lr": 1e-3, "warmup": 0.1, "find": 0.5, "cooldown": 0.3}
    _, found, _ = run_quadratic(**options, correction=1.0)
    _, corrected, _ = run_quadratic(**options, correction=2.0)
    assert corrected[:50] == found[:50]
    last_third = torch.tensor(found[33:50], dtype=torch.float64).log()  # step k used what step k−1 had set
    assert found[50:70] == pytest.approx([found[50]] * 20)
    assert math.log(found[50]) == pytest.approx(last_third.mean().item(), abs=0.06)
    assert corrected[50] == pytest.approx(2 * found[50])


def test_the_cooldown_is_a_pure_ramp() -> None:
    _, sizes, _ = run_quadratic(lr=1e-3, cooldown=0.3)
    ratios = [b / a for a, b in pairwise(sizes[70:])]
    assert ratios == pytest.approx([(29 - i) / (30 - i) for i in range(29)])


def test_without_commitment_it_adapts_until_the_cooldown() -> None:
    _, sizes, _ = run_quadratic(lr=1e-3, find=1.0, cooldown=0.3)
    assert len(set(sizes[30:70])) == 40
    ratios = [b / a for a, b in pairwise(sizes[71:])]
    assert ratios == pytest.approx([(28 - i) / (29 - i) for i in range(28)])


def test_the_meta_step_follows_the_horizon_within_bounds() -> None:
    strategy = make("metaoptimize")
    assert strategy.horizon_meta_lr(2_000) == pytest.approx(1e-2)
    assert strategy.horizon_meta_lr(10) == 5e-2
    assert strategy.horizon_meta_lr(10**6) == 1e-3
    assert make("metaoptimize", meta_lr=3e-3).horizon_meta_lr(2_000) == 3e-3


@pytest.mark.parametrize("at", [5, 25, 29, 30, 31, 75])
def test_resumed_in_any_part_it_goes_on_as_it_would_have(at: int) -> None:
    _, sizes, _ = run_quadratic(lr=1e-3)
    torch.manual_seed(0)
    model = nn.Linear(8, 1, bias=False)
    run = make("metaoptimize", lr=1e-3).build(model, 100)

    def steps(count: int) -> list[float]:
        out = []
        for _ in range(count):
            (model(torch.ones(1, 8)) - 3).square().sum().backward()
            run.step()
            out.append(float(run.step_sizes()[0]))
        return out

    first = steps(at)
    state, weights = copy.deepcopy((run.state_dict(), model.state_dict()))
    model = nn.Linear(8, 1, bias=False)
    model.load_state_dict(weights)
    run = make("metaoptimize", lr=1e-3).build(model, 100)
    run.load_state_dict(state)
    assert first + steps(100 - at) == sizes


def test_every_base_and_block_choice_trains() -> None:
    for base in ("sgd", "sgdm", "rmsprop", "adamw", "lion"):
        _, sizes, losses = run_quadratic(lr=1e-3, base=base)
        assert min(losses) < 0.5 * losses[0]
        assert max(sizes) > 1e-3
    for blocks in ("layer", "tensor"):
        run, _, _ = run_quadratic(blocks=blocks)
        assert run.step_sizes().shape == (1,)
