"""Schedules: against torch's own, and what must hold at any horizon."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from metaopt_hpo.strategies import StrategyError, make
from metaopt_hpo.strategies.groups import decay_groups

NAMES = ("constant", "cosine", "linear", "wsd")


def lrs(name: str, horizon: int, steps: int | None = None, **options: float) -> list[float]:
    model = nn.Linear(2, 2)
    run = make(name, **options).build(model, horizon)
    out = []
    for _ in range(steps or horizon):
        model(torch.ones(1, 2)).sum().backward()
        run.step()
        out.append(run.optimizer.param_groups[0]["lr"])
    return out


def test_cosine_without_warmup_equals_torch() -> None:
    horizon = 37
    ours = lrs("cosine", horizon, lr=0.3, warmup=0.0)
    p = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([p], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, horizon)
    theirs = []
    for _ in range(horizon):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert ours == pytest.approx(theirs)


def test_linear_and_wsd_end_one_step_above_zero() -> None:
    assert lrs("linear", 20, lr=1.0, warmup=0.0) == pytest.approx([1 - i / 20 for i in range(20)])
    wsd = lrs("wsd", 100, lr=1.0, warmup=0.1, cooldown=0.2)
    assert wsd[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert wsd[10:80] == pytest.approx([1.0] * 70)
    assert wsd[80:] == pytest.approx([1 - i / 20 for i in range(20)])


@given(name=st.sampled_from(NAMES), horizon=st.integers(1, 500), warmup=st.floats(0, 1))
def test_multiplier_stays_between_zero_and_one_and_starts_at_most_at_the_ramp(
    name: str, horizon: int, warmup: float
) -> None:
    schedule = make(name, warmup=warmup)
    factors = [schedule.multiplier(k, horizon) for k in range(horizon)]
    assert all(0 <= f <= 1 for f in factors)
    ramp = round(warmup * horizon)
    assert ramp == 0 or factors[0] <= 1 / ramp + 1e-12


@given(name=st.sampled_from(NAMES), fraction=st.floats(0, 0.99))
def test_shape_depends_on_the_fraction_done_not_on_the_horizon(name: str, fraction: float) -> None:
    schedule = make(name)
    a, b = (schedule.multiplier(int(fraction * h), h) for h in (10_000, 20_000))
    assert math.isclose(a, b, abs_tol=3e-3)


@pytest.mark.filterwarnings("ignore::metaopt_hpo.strategies.errors.RunWarning")
def test_past_the_horizon_the_schedule_stays_where_it_ended() -> None:
    values = lrs("wsd", 10, steps=13, lr=1.0)
    assert values[9] == values[10] == values[12] > 0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.pos = nn.Parameter(torch.zeros(2, 3))
        self.norm = nn.LayerNorm(3)
        self.linear = nn.Linear(3, 3)
        self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)


def test_only_matrices_decay() -> None:
    net = Net()
    decayed, exempt = decay_groups(net, 0.1)
    assert decayed["params"] == [("linear.weight", net.linear.weight)]
    assert decayed["weight_decay"] == 0.1
    assert exempt["weight_decay"] == 0.0
    trained = {id(p) for p in net.parameters() if p.requires_grad}
    assert {id(p) for g in (decayed, exempt) for _, p in g["params"]} == trained


def test_tied_weights_are_listed_once() -> None:
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    net[1].weight = net[0].weight
    assert sum(len(g["params"]) for g in decay_groups(net, 0.1)) == 1


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("cosine", {"lr": -1.0}, "lr"),
        ("cosine", {"lr": float("nan")}, "lr"),
        ("cosine", {"warmup": 1.5}, "warmup"),
        ("cosine", {"final": -0.1}, "final"),
        ("wsd", {"cooldown": 2.0}, "cooldown"),
        ("wsd", {"weight_decay": -0.1}, "weight_decay"),
        ("wsd", {"betas": (0.9, 1.0)}, "betas"),
        ("wsd", {"max_grad_norm": 0.0}, "max_grad_norm"),
        ("wsd", {"base": "adam"}, "base"),
        ("wsd", {"speed": 1}, "speed"),
    ],
)
def test_a_wrong_option_is_named(name: str, options: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make(name, **options)


@pytest.mark.parametrize("horizon", [0, -3, 2.5, True])
def test_a_wrong_horizon_is_refused(horizon: object) -> None:
    with pytest.raises(ValueError, match="horizon"):
        make("cosine").build(nn.Linear(1, 1), horizon)


def test_nothing_to_train_is_said() -> None:
    with pytest.raises(ValueError, match="requires_grad"):
        make("cosine").build(nn.ReLU(), 10)


@pytest.mark.parametrize("base", ["adamw", "sgd", "sgdm"])
def test_clipping_bounds_the_step_and_reports_the_norm_before(base: str) -> None:
    model = nn.Linear(4, 1, bias=False)
    run = make("constant", base=base, max_grad_norm=0.5, warmup=0.0).build(model, 10)
    (1e3 * model(torch.ones(1, 4)).sum()).backward()
    gradient = model.weight.grad
    assert gradient is not None
    before = gradient.norm()
    run.step()
    assert run.grad_norm is not None
    assert run.grad_norm == pytest.approx(before)
    assert gradient.norm() == pytest.approx(0.5, rel=1e-4)


def test_resuming_under_another_horizon_is_refused() -> None:
    model = nn.Linear(1, 1)
    state = make("cosine").build(model, 10).state_dict()
    with pytest.raises(StrategyError, match="10 steps and this one for 20"):
        make("cosine").build(model, 20).load_state_dict(state)
