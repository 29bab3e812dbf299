"""Kinds of base rules, and what a run does over each: bounded gradients, and no measurement of long momenta."""

import copy
import math

import pytest
import torch
from torch import nn

from metaopt_hpo.optim import Muon
from metaopt_hpo.optim.rules import SGD, SGDM, AdamW, Lion, RMSprop, Rule
from metaopt_hpo.strategies import make
from metaopt_hpo.strategies.any_optimizer import Given
from metaopt_hpo.strategies.balance import ANCHOR, measurement
from metaopt_hpo.strategies.kinds import follows_gradient_size, memory, slowness
from metaopt_hpo.strategies.torch_rules import TorchMomentum, TorchRMSprop
from metaopt_hpo.strategies.wrap import wrap

FOLLOWS = [SGD(), SGDM(), TorchMomentum(), TorchMomentum(nesterov=True), TorchMomentum(dampening=0.5)]
BOUNDED = [AdamW(), Lion(), RMSprop(), TorchRMSprop(momentum=0.9), Muon(), Given()]


@pytest.mark.parametrize("rule", FOLLOWS)
def test_rules_whose_update_grows_with_the_gradient(rule: Rule) -> None:
    assert follows_gradient_size(rule)


@pytest.mark.parametrize("rule", BOUNDED)
def test_rules_whose_update_does_not(rule: Rule) -> None:
    assert not follows_gradient_size(rule)


@pytest.mark.parametrize(
    ("rule", "steps"),
    [(SGD(), 1), (SGDM(momentum=0.95), 20), (AdamW(betas=(0.9, 0.999)), 10), (Lion(betas=(0.9, 0.99)), 100)],
)
def test_memory_is_that_of_the_momentum(rule: Rule, steps: float) -> None:
    assert memory(rule) == pytest.approx(steps)


def test_over_lion_the_search_begins_lower_and_goes_slower() -> None:
    assert slowness(Lion()) == pytest.approx(0.1**0.5)
    assert slowness(Lion(betas=(0.5, 0.8))) == 1.0
    assert [slowness(rule) for rule in (*FOLLOWS, AdamW(betas=(0.99, 0.999)), RMSprop(), Muon())] == [1.0] * 8
    usual, slow = (make("metaoptimize", base=base).horizon_meta_lr(2000) for base in ("adamw", "lion"))
    assert slow == pytest.approx(usual * 0.1**0.5)
    assert make("metaoptimize", base="lion", meta_lr=3e-3).horizon_meta_lr(2000) == 3e-3


def test_anchors_lie_as_far_apart_as_the_momentum_remembers_or_nothing_is_measured() -> None:
    usual, long = measurement(2000, 0.2, 0.12, 10.0), measurement(2000, 0.2, 0.12, 20.0)
    assert usual is not None
    assert [s for s in range(400, 640) if usual.anchors(s)][1] == 400 + ANCHOR
    assert long is not None
    assert [s for s in range(400, 640) if long.anchors(s)][1] == 400 + 80
    assert measurement(2000, 0.2, 0.12, 100.0) is None
    assert measurement(200, 0.2, 0.12, 10.0) is not None


def digits(width: int = 32) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )
    return model, torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("horizon", [150, 400])
@pytest.mark.filterwarnings("ignore::metaopt_hpo.strategies.untried.UntriedBase")
def test_bare_sgd_without_clipping_is_not_driven_over_the_edge_of_stability(
    momentum: float, horizon: int
) -> None:
    model, x, y = digits()
    run = wrap(torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum), horizon)
    for step in range(horizon):
        rows = torch.randint(len(x), (64,), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        run.step(loss.detach())
    assert nn.functional.cross_entropy(model(x), y) < 0.3  # chance is 2.3
    assert run.max_grad_norm is not None


def noisy(run, model, steps: int):  # type: ignore[no-untyped-def]
    for _ in range(steps):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(run.steps_taken))
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        run.step(loss.detach())


@pytest.mark.filterwarnings("ignore::metaopt_hpo.strategies.untried.UntriedBase")
def test_the_bound_is_the_first_gradients_norm_and_comes_back_with_a_checkpoint() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    run = make("metaoptimize", base="sgd", max_grad_norm=None).build(model, 60)
    noisy(run, model, 20)
    assert run.max_grad_norm is not None
    assert math.isfinite(run.max_grad_norm)
    again_model = copy.deepcopy(model)
    again = make("metaoptimize", base="sgd", max_grad_norm=None).build(again_model, 60)
    again.load_state_dict(copy.deepcopy(run.state_dict()))
    assert again.max_grad_norm == run.max_grad_norm
    noisy(run, model, 20)
    noisy(again, again_model, 20)
    assert torch.equal(model.weight, again_model.weight)


@pytest.mark.parametrize(("base", "given"), [("adamw", None), ("sgd", 2.0)])
@pytest.mark.filterwarnings("ignore::metaopt_hpo.strategies.untried.UntriedBase")
def test_nothing_is_bounded_where_it_need_not_be(base: str, given: float | None) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    run = make("metaoptimize", base=base, max_grad_norm=given).build(model, 60)
    noisy(run, model, 5)
    assert run.max_grad_norm == given
