"""The metaoptimize strategy: ramps, horizon-aware meta step, frozen cooldown."""

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
    assert max(sizes) > 1e-3
    assert losses[-1] < 0.9 * stuck[-1]


def test_the_cooldown_is_a_pure_ramp_unless_asked_otherwise() -> None:
    _, sizes, _ = run_quadratic(lr=1e-3, cooldown=0.3)
    ratios = [b / a for a, b in pairwise(sizes[70:])]
    assert ratios == pytest.approx([(29 - i) / (30 - i) for i in range(29)])
    _, adapting, _ = run_quadratic(lr=1e-3, cooldown=0.3, adapt_in_cooldown=True)
    assert adapting[-1] != pytest.approx(sizes[-1])


def test_the_meta_step_follows_the_horizon_within_bounds() -> None:
    strategy = make("metaoptimize")
    assert strategy.horizon_meta_lr(2_000) == pytest.approx(1e-2)
    assert strategy.horizon_meta_lr(10) == 5e-2
    assert strategy.horizon_meta_lr(10**6) == 1e-3
    assert make("metaoptimize", meta_lr=3e-3).horizon_meta_lr(2_000) == 3e-3


def test_resume_inside_the_cooldown_stays_frozen() -> None:
    run, _, _ = run_quadratic(lr=1e-3)
    state = run.state_dict()
    other = make("metaoptimize", lr=1e-3).build(nn.Linear(8, 1, bias=False), 100)
    other.load_state_dict(state)
    assert other.optimizer.meta_lr == 0.0
    assert torch.equal(other.step_sizes(), run.step_sizes())


def test_every_base_and_block_choice_trains() -> None:
    for base in ("sgd", "sgdm", "rmsprop", "adamw", "lion"):
        _, sizes, losses = run_quadratic(lr=1e-3, base=base)
        assert min(losses) < 0.5 * losses[0]
        assert max(sizes) > 1e-3
    for blocks in ("layer", "tensor"):
        run, _, _ = run_quadratic(blocks=blocks)
        assert run.step_sizes().shape == (1,)
