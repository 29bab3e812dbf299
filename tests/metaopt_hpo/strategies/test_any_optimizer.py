"""wrap() over optimizers that no rule is known for: their own steps exactly, resumed, brought back, or refused."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from metaopt_hpo.strategies import StrategyError
from metaopt_hpo.strategies.wrap import wrap

O = torch.optim
PLAIN = {"meta_lr": 0.0, "warmup": 0.0, "cooldown": 0.0, "guard": False}
"""With these a run is the optimizer itself at its own lr."""

pytestmark = pytest.mark.filterwarnings("ignore::metaopt_hpo.strategies.untried.UntriedBase")


class Own(O.Optimizer):
    """A user's own: averaged signs, a state of its own, a counter outside the state."""

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.calls = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.calls += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    average = self.state[p].setdefault("average", torch.zeros_like(p))
                    average.mul_(0.9).add_(p.grad.sign(), alpha=0.1)
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(average, alpha=-group["lr"])


class Renamed(O.AdamW):
    """Changes nothing."""


class Logged(O.AdamW):
    """Has a step of its own."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Capped(Own):
    """Does not do what lr says."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["lr"] = min(group["lr"], 1e-4)
        super().step(closure)


class Averaging(Own):
    """Its weights are not where its steps went."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                slow = self.state[p].setdefault("slow", p.detach().clone())
                slow.lerp_(p, 0.3)
                p.copy_(slow)


KINDS: dict[str, Callable[..., O.Optimizer]] = {
    "nadam": lambda p: O.NAdam(p, lr=3e-3, weight_decay=0.01),
    "radam": lambda p: O.RAdam(p, lr=3e-3),
    "adagrad": lambda p: O.Adagrad(p, lr=3e-2),
    "adamax": lambda p: O.Adamax(p, lr=3e-3),
    "own": lambda p: Own(p, lr=3e-3, weight_decay=0.1),
    "subclass": lambda p: Renamed(p, lr=3e-3),
    "subclass with a step": lambda p: Logged(p, lr=3e-3, weight_decay=0.1),
    "muon": lambda p: O.Muon([q for q in p if q.ndim == 2], lr=3e-3),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)).double()


def losses(model: nn.Module, start: int, stop: int) -> Any:
    for step in range(start, stop):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        yield (model(x) - x[:, :2].abs()).square().mean()


def take(run: Any, model: nn.Module, start: int, stop: int, factor: float = 1.0) -> float:
    for loss in losses(model, start, stop):
        loss.backward()
        run.step(loss.detach() * factor)
    return loss.item()


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", KINDS)
def test_at_the_users_lr_it_is_the_users_optimizer(name: str) -> None:
    a, b = net(), net()
    plain, run = KINDS[name](a.parameters()), wrap(KINDS[name](b.parameters()), 20, **PLAIN)
    for loss in losses(a, 0, 20):
        loss.backward()
        plain.step()
        a.zero_grad()
    take(run, b, 0, 20)
    torch.testing.assert_close(weights(a), weights(b), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in KINDS if n != "adagrad"])
def test_it_learns_from_any_lr(name: str) -> None:
    first = next(iter(losses(net(), 0, 1))).item()
    for lr in (1e-6, 1.0):
        model = net()
        optimizer = KINDS[name](model.parameters())
        for group in optimizer.param_groups:
            group["lr"] = lr
        assert take(wrap(optimizer, 300, model), model, 0, 300) < 0.6 * first


@pytest.mark.parametrize("name", ["nadam", "own", "muon"])
@pytest.mark.parametrize("as_optimizer", [False, True])
def test_resumed_it_goes_on_bitwise(name: str, as_optimizer: bool, tmp_path: Any) -> None:
    def made() -> tuple[nn.Module, Any]:
        model = net()
        return model, wrap(KINDS[name](model.parameters()), 40, model)

    def holder(run: Any) -> Any:
        return run.as_optimizer() if as_optimizer else run

    model, run = made()
    take(run, model, 0, 17)
    torch.save((model.state_dict(), holder(run).state_dict()), tmp_path / "c.pt")
    take(run, model, 17, 40)
    other, resumed = made()
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    other.load_state_dict(saved[0])
    holder(resumed).load_state_dict(saved[1])
    take(resumed, other, 17, 40)
    assert torch.equal(weights(model), weights(other))


def test_its_state_as_an_optimizer_is_text_and_tensors() -> None:
    model = net()
    run = wrap(O.NAdam(model.parameters()), 40, model)
    take(run, model, 0, 3)
    assert json.loads(run.as_optimizer().state_dict()["param_groups"][0]["run"])["steps_taken"] == 3


def test_the_guard_brings_its_state_back_too() -> None:
    model = net()
    optimizer = Own(model.parameters())
    run = wrap(optimizer, 100, model)
    take(run, model, 0, 19)  # the fourth window ends with the twentieth loss, which is of these weights
    good = {p: optimizer.state[p]["average"].clone() for p in model.parameters()}
    take(run, model, 19, 24)
    assert run.guard is not None
    before = run.guard.total
    take(run, model, 24, 25, factor=float("nan"))
    assert run.guard.total == before + 1
    for p, average in good.items():
        assert torch.equal(optimizer.state[p]["average"], average)


def test_unfrozen_weights_and_loss_scaling() -> None:
    model = net().float()
    model[0].requires_grad_(False)
    run = wrap(O.NAdam(model[2].parameters()), 60, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)

    def steps(start: int, stop: int) -> None:
        for step in range(start, stop):
            x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
            loss = (model(x) - x[:, :2].abs()).square().mean()
            scaler.scale(loss).backward()
            run.step(loss.detach(), scaler=scaler)

    steps(0, 10)
    model[0].requires_grad_(True)
    before = model[0].weight.clone()
    run.as_optimizer().add_param_group({"params": list(model[0].parameters())})
    steps(10, 60)
    assert not torch.equal(before, model[0].weight)
    assert weights(model).isfinite().all()


def test_the_random_state_of_the_run_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    model = net()
    torch.manual_seed(3)
    wrap(O.NAdam(model.parameters()), 40, model)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Capped, "not in proportion to its lr"),
        (Averaging, "not in proportion to its lr"),
        (O.LBFGS, "a trial step of it fails .*closure"),
        (O.SparseAdam, "a trial step of it fails"),
        (lambda p: pytest.importorskip("pytorch_optimizer").Prodigy(p), "sets its own learning rate"),
        (lambda p: pytest.importorskip("pytorch_optimizer").ScheduleFreeAdamW(p), "not in proportion"),
    ],
)
def test_what_cannot_be_in_one_sentence(kind: Any, says: str) -> None:
    with pytest.raises(StrategyError, match=says) as error:
        wrap(kind(net().float().parameters()), 10)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, ValueError)
