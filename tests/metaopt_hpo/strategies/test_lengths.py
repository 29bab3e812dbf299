"""Every strategy over every base it accepts, at every length: it ends, learns, and its state does not grow."""

import gc
import math
from typing import Any

import pytest
import torch
from torch import nn

from metaopt_hpo.strategies import LRRun, StrategyError, available, get, make

BUILT_IN = [n for n in available() if get(n).__module__.startswith("metaopt_hpo.")]
PAIRS = [(name, base) for name in BUILT_IN for base in get(name).bases]
FIXED = 256
"""Bytes of sums that are kept for a part of a run; a number a step would be more by far."""

SLOW_STEPS = ("gdtuo",)
"""Its step differentiates itself, at milliseconds each."""


def started(name: str, base: str, horizon: int) -> tuple[nn.Module, LRRun]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    lr = {} if get(name).tunes_lr else {"lr": 1e-2}
    try:
        return model, make(name, base=base, **lr).build(model, horizon)
    except StrategyError as error:
        pytest.skip(str(error))


def steps(model: nn.Module, run: LRRun, stop: int) -> float:
    x = torch.tensor([[1.0, -1.0], [0.5, 2.0], [-1.0, 0.3], [0.2, 0.1]])
    y = x.sum(1, keepdim=True)
    run.train()
    while run.steps_taken < stop:
        with run.forward():
            loss = (model(x) - y).square().mean()
        if not run.needs_graph:
            loss.backward()
        run.step(loss)
    run.eval()
    with torch.no_grad():
        value = (model(x) - y).square().mean().item()
    run.train()
    return value


def weight_of(state: Any) -> int:
    """Bytes of the tensors of a nested state, and eight for every other entry."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        state = list(state.values())
    if isinstance(state, list | tuple):
        return sum(map(weight_of, state))
    return 8


def alive() -> int:
    """Objects in memory."""
    gc.collect()
    return len(gc.get_objects())


def test_every_strategy_names_its_bases() -> None:
    assert {name for name, _ in PAIRS} == set(BUILT_IN)
    for name in BUILT_IN:
        for other in {"sgd", "sgdm", "adamw", "lion", "rmsprop"} - set(get(name).bases):
            with pytest.raises(ValueError, match="base of strategy"):
                make(name, base=other)


@pytest.mark.filterwarnings("ignore::metaopt_hpo.errors.MetaOptWarning")
@pytest.mark.parametrize("horizon", [1, 2, 3, 10])
@pytest.mark.parametrize(("name", "base"), PAIRS)
def test_the_shortest_runs(name: str, base: str, horizon: int) -> None:
    model, run = started(name, base, horizon)
    assert math.isfinite(steps(model, run, horizon))
    assert run.steps_taken == horizon
    assert torch.isfinite(run.step_sizes()).all()


@pytest.mark.filterwarnings("ignore::metaopt_hpo.errors.MetaOptWarning")
@pytest.mark.parametrize(("name", "base"), [p for p in PAIRS if p[0] not in SLOW_STEPS])
def test_past_step_1024_with_a_state_that_does_not_grow(name: str, base: str) -> None:
    model, run = started(name, base, 1_026)
    before = steps(model, run, 0)
    steps(model, run, 500)
    early = weight_of(run.state_dict())
    assert steps(model, run, 1_026) < before
    assert weight_of(run.state_dict()) <= early + FIXED


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore::metaopt_hpo.errors.MetaOptWarning")
@pytest.mark.parametrize("horizon", [1_023, 1_024, 1_025, 5_000, 20_000])
@pytest.mark.parametrize(("name", "base"), PAIRS)
def test_soak(name: str, base: str, horizon: int) -> None:
    model, run = started(name, base, horizon)
    before = steps(model, run, 0)
    steps(model, run, 500)
    early = weight_of(run.state_dict())
    objects = alive()
    assert steps(model, run, horizon) < before
    assert weight_of(run.state_dict()) <= early + FIXED
    assert alive() < objects + horizon // 10, "nothing is kept for a step"


@pytest.mark.filterwarnings("ignore::metaopt_hpo.errors.MetaOptWarning")
@pytest.mark.parametrize("name", BUILT_IN)
def test_step_one_billion_is_a_step(name: str) -> None:
    """A run of a billion steps near its end: nothing is a power or a list of the step."""
    horizon = 10**9
    model, run = started(name, get(name).bases[0], horizon)
    steps(model, run, 3)
    run.steps_taken = horizon - 3
    assert math.isfinite(steps(model, run, horizon))
