"""A step size is not committed to before the run has begun to learn, and the wait is part of what is saved."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from metaopt_hpo import wrap
from metaopt_hpo.strategies import make, plateau

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


def test_it_waits_while_the_step_size_climbs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that leaves a plateau late: its step size climbs by a factor of four in the time that is averaged."""

    def committed(horizon: int = 1200) -> tuple[float, int]:
        torch.manual_seed(4)
        x = torch.randn(2048, 8, generator=torch.Generator().manual_seed(0))
        y = (x[:, :4] * x[:, 4:]).sum(1, keepdim=True)
        model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))
        run = make("metaoptimize").build(model, horizon)
        while run.found_lr is None:
            rows = torch.randint(
                len(x), (64,), generator=torch.Generator().manual_seed(4000 + run.steps_taken)
            )
            loss = (model(x[rows]) - y[rows]).square().mean()
            loss.backward()
            run.step(loss.detach())
        return float(run.found_lr), run.steps_taken

    patient, late = committed()
    monkeypatch.setattr(plateau, "CLIMBING", math.inf)
    hasty, early = committed()
    assert early < late < 0.4 * 1200
    assert patient > 2 * hasty  # Adam with a cosine is best at 0.05 here, and 0.02 ends a fifth above it
    assert patient == pytest.approx(0.05, rel=0.4)
