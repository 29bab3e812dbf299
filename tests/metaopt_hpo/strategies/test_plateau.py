"""A step size is not committed to before the run has begun to learn, and the wait is part of what is saved."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from metaopt_hpo import wrap

STEPS = 100


def begun() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    return model, wrap(torch.optim.AdamW(model.parameters()), STEPS, model)


def take(model: nn.Module, run: Any, start: int, stop: int, shown: Any) -> int | None:
    """Steps until a learning rate is found, with the loss that the run is shown."""
    for step in range(start, stop):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        run.step(torch.tensor(float(shown(step))))
        if run.found_lr is not None:
            return step
    return None


@pytest.mark.parametrize(
    ("shown", "commits"),
    [
        (lambda step: 4.0, 50),
        (lambda step: 4.0 if step < 33 else 2.0, 35),
        (lambda step: 4.0 - 0.1 * step, 20),
        (lambda step: -4.0, 20),
    ],
)
def test_it_waits_while_the_loss_stays_up_and_not_beyond_half_of_the_run(shown: Any, commits: int) -> None:
    assert take(*begun(), 0, STEPS, shown) == commits


def test_without_a_loss_it_does_not_wait() -> None:
    model, run = begun()
    for step in range(21):
        model(torch.ones(4)).sum().backward()
        run.step()
        assert (run.found_lr is not None) == (step == 20)


@pytest.mark.parametrize("cut", [19, 22, 33])
def test_resumed_within_the_wait_it_goes_on_the_same(cut: int) -> None:
    def shown(step: int) -> float:
        return 4.0 if step < 33 else 2.0

    model, run = begun()
    take(model, run, 0, cut, shown)
    saved = copy.deepcopy(run.state_dict())
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    whole = take(model, run, cut, STEPS, shown)
    other, resumed = begun()
    other.load_state_dict(weights)
    resumed.load_state_dict(saved)
    assert take(other, resumed, cut, STEPS, shown) == whole == 35
    assert resumed.found_lr == run.found_lr
