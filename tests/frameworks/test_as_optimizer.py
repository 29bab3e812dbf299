"""A run as an optimizer: the same steps as run.step, every strategy, torch's own loop and checkpoints."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from metaopt_hpo import wrap
from metaopt_hpo.strategies import StrategyError, available, make
from metaopt_hpo.strategies.as_optimizer import LRSetTwice, NoLoss

STEPS = 40
pytestmark = pytest.mark.filterwarnings("ignore::metaopt_hpo.strategies.as_optimizer.NoLoss")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))


def losses(model: nn.Module, start: int = 0, stop: int = STEPS) -> Any:
    for step in range(start, stop):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        yield (model(x) - x[:, :2].abs()).square().mean()


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def runs(name: str, model: nn.Module) -> Any:
    if name == "wrap":
        return wrap(torch.optim.Adam(model.parameters(), weight_decay=0.01), STEPS, model)
    return make(name, **({} if make(name).tunes_lr else {"lr": 1e-2})).build(model, STEPS)


NAMES = ["wrap", *(n for n in available() if n != "gdtuo")]  # gdtuo differentiates its own update


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_the_runs_steps(name: str) -> None:
    try:
        plain, framed = net(), net()
        run, other = runs(name, plain), runs(name, framed)
        optimizer = other.as_optimizer()
    except StrategyError as error:
        pytest.skip(str(error))
    for a, b in zip(losses(plain), losses(framed), strict=True):
        a.backward()
        run.step(a)

        def closure(loss: torch.Tensor = b) -> torch.Tensor:
            optimizer.zero_grad()
            loss.backward()
            return loss

        assert optimizer.step(closure) is b
        assert [g["lr"] for g in optimizer.param_groups] == other.group_step_sizes().tolist()
    assert torch.equal(weights(plain), weights(framed))


@pytest.mark.parametrize("name", ["wrap", "metaoptimize", "cosine", "prodigy"])
@pytest.mark.parametrize("cut", [0, 5, 19, 35])
def test_resumed_from_its_state_dict_it_goes_on_bitwise(name: str, cut: int, tmp_path: Any) -> None:
    model = net()
    optimizer = runs(name, model).as_optimizer()
    for step, loss in enumerate(losses(model)):
        if step == cut:
            torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "c.pt")
        loss.backward()
        optimizer.step()
    other = net()
    resumed = runs(name, other).as_optimizer()
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for loss in losses(other, cut):
        loss.backward()
        resumed.step()
    assert torch.equal(weights(model), weights(other))
    assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in resumed.param_groups]


def test_somebody_elses_scheduler_is_named_once_and_changes_nothing() -> None:
    plain, model = net(), net()
    alone = runs("wrap", plain).as_optimizer()
    for loss in losses(plain):
        loss.backward()
        alone.step()
    optimizer = runs("wrap", model).as_optimizer()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / STEPS)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for loss in losses(model):
            loss.backward()
            optimizer.step()
            scheduler.step()
    assert [w.category for w in said if issubclass(w.category, LRSetTwice)] == [LRSetTwice]
    assert torch.equal(weights(plain), weights(model))


def test_its_own_scheduler_shows_the_step_size() -> None:
    model = net()
    optimizer, scheduler = runs("metaoptimize", model).as_optimizers()
    for loss in losses(model):
        loss.backward()
        optimizer.step()
        scheduler.step()
        assert scheduler.get_last_lr() == optimizer.lr_run.group_step_sizes().tolist()
    other = runs("metaoptimize", net()).as_scheduler()
    other.load_state_dict(scheduler.state_dict())
    assert other.last_epoch == STEPS


@pytest.mark.parametrize("part", [0.1, None])
def test_unfrozen_weights_join_with_an_lr_relative_to_what_is_shown(part: float | None) -> None:
    model = net()
    model[0].requires_grad_(False)
    run = wrap(torch.optim.AdamW(model[2].parameters()), STEPS, model)
    optimizer = run.as_optimizer()
    for loss in losses(model, 0, 20):
        loss.backward()
        optimizer.step()
    model[0].requires_grad_(True)
    group = {"params": list(model[0].parameters())}
    before = weights(model[0])
    optimizer.add_param_group(
        group if part is None else {**group, "lr": part * optimizer.param_groups[0]["lr"]}
    )
    for loss in losses(model, 20):
        loss.backward()
        optimizer.step()
    old, new = (g["lr"] for g in optimizer.param_groups)
    assert new == pytest.approx((part or 1.0) * old)
    assert not torch.equal(before, weights(model[0]))


def named(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [
            {"params": model[0].parameters(), "name": "body", "weight_decay": 0.0},
            {"params": model[2].parameters(), "name": "head", "own": object()},
        ]
    )


def test_the_users_own_keys_are_shown_and_stay_live() -> None:
    model = net()
    own = named(model)
    optimizer = wrap(own, STEPS, model).as_optimizer()
    loss = next(losses(model))
    assert [g["name"] for g in optimizer.param_groups] == ["body", "head"]
    assert all(set(own.param_groups[i]) == set(g) for i, g in enumerate(optimizer.param_groups))
    assert optimizer.param_groups[0]["weight_decay"] == 0.0
    own.param_groups[1]["name"] = "top"
    loss.backward()
    optimizer.step()
    assert [g["name"] for g in optimizer.param_groups] == ["body", "top"]
    assert [g["lr"] for g in optimizer.param_groups] != [g["lr"] for g in own.param_groups]


def test_the_users_keys_do_not_disturb_a_checkpoint(tmp_path: Any) -> None:
    model, again = net(), net()
    optimizer, resumed = (wrap(named(m), STEPS, m).as_optimizer() for m in (model, again))
    for loss in losses(model, 0, 20):
        loss.backward()
        optimizer.step()
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
    kept, state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert [g["name"] for g in state["param_groups"]] == ["body", "head"]
    again.load_state_dict(kept)
    resumed.load_state_dict(state)
    assert all("name" not in g for g in resumed.lr_run.optimizer.param_groups)
    for m, o in ((model, optimizer), (again, resumed)):
        for loss in losses(m, 20):
            loss.backward()
            o.step()
    assert torch.equal(weights(model), weights(again))


def test_the_users_keys_pass_through_distributed_checkpoints() -> None:
    from torch.distributed.checkpoint import state_dict as dcp

    model, again = net(), net()
    optimizer, resumed = (wrap(named(m), STEPS, m).as_optimizer() for m in (model, again))
    for loss in losses(model, 0, 20):
        loss.backward()
        optimizer.step()
    saved = dcp.get_state_dict(model, optimizer)
    dcp.set_state_dict(again, resumed, model_state_dict=saved[0], optim_state_dict=saved[1])
    assert resumed.lr_run.steps_taken == 20
    assert torch.equal(weights(model), weights(again))


def test_a_foreign_state_and_another_horizon_are_refused() -> None:
    optimizer = runs("wrap", net()).as_optimizer()
    with pytest.raises(StrategyError, match="not the state of a run"):
        optimizer.load_state_dict(torch.optim.AdamW(net().parameters()).state_dict())
    other = wrap(torch.optim.Adam(net().parameters()), STEPS + 1).as_optimizer()
    with pytest.raises(StrategyError, match="planned for 40 steps and this one for 41"):
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def test_a_strategy_that_needs_the_graph_is_refused() -> None:
    with pytest.raises(StrategyError, match="hessian_free"):
        make("metaoptimize", trace="2x2").build(net(), STEPS).as_optimizer()


def test_loss_scaling_from_outside() -> None:
    model = net()
    optimizer = runs("wrap", model).as_optimizer()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for loss in losses(model):
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert next(iter(losses(model))).item() < next(iter(losses(net()))).item()


def test_a_loop_that_gives_no_loss_is_told_once_that_the_guard_is_off() -> None:
    model = net()
    optimizer = runs("wrap", model).as_optimizer()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for loss in losses(model, 0, 3):
            loss.backward()
            optimizer.step()
    (said,) = (w for w in caught if w.category is NoLoss)
    assert "as_optimizer().loss = loss" in str(said.message)


@pytest.mark.parametrize("guard", [True, False])
def test_with_a_loss_or_without_a_guard_nothing_is_said(guard: bool) -> None:
    model = net()
    optimizer = wrap(torch.optim.AdamW(model.parameters()), STEPS, model, guard=guard).as_optimizer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loss in losses(model, 0, 3):
            loss.backward()
            if guard:
                optimizer.loss = loss
            optimizer.step()
