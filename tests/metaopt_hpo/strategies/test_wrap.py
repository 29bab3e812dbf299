"""wrap(): the recipe of an existing optimizer stays exactly, and only its learning rate is found."""

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from wrapping import PLAIN, RECIPES, groups, losses, net, one_step, take

import metaopt_hpo
from metaopt_hpo.strategies import StrategyError, make
from metaopt_hpo.strategies.errors import RunWarning
from metaopt_hpo.strategies.wrap import wrap

O = torch.optim


@pytest.mark.parametrize("name", RECIPES)
def test_at_the_users_lr_it_is_the_users_optimizer(name: str) -> None:
    same_weights(RECIPES[name], {})


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("adamw", {"betas": (0.5, 0.9), "eps": 1e-3}),
        ("adamw", {"amsgrad": True}),
        ("adam l2", {"betas": (0.5, 0.9)}),
        ("sgd", {"momentum": 0.9, "nesterov": True}),
        ("momentum", {"momentum": 0.5, "dampening": 0.2}),
        ("rmsprop", {"alpha": 0.9, "eps": 1e-4, "momentum": 0.5}),
        ("lion", {"betas": (0.5, 0.9)}),
    ],
)
def test_groups_keep_numbers_of_their_own(name: str, own: dict[str, Any]) -> None:
    same_weights(RECIPES[name], own)


def same_weights(recipe: Callable[..., torch.optim.Optimizer], own: dict[str, Any]) -> None:
    """The weights of a wrapped optimizer at a fixed lr are those of the optimizer; `own` are the second group's."""
    a, b = net(), net()
    first, second = groups(a), groups(b)
    first[1] |= own
    second[1] |= own
    plain = recipe(first)
    run = wrap(recipe(second), 20, **PLAIN)
    for loss, same in zip(losses(a, 20), losses(b, 20), strict=True):
        loss.backward()
        same.backward()
        for model in (a, b):
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        plain.step()
        plain.zero_grad()
        run.step(same)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)
    assert all(q.grad is None for q in b.parameters())


@pytest.mark.parametrize("name", [n for n in RECIPES if "maximize" not in n])
def test_it_learns_from_any_lr(name: str) -> None:
    ends = []
    for lr in (1e-6, 1e-2):
        model = net()
        optimizer = RECIPES[name](model.parameters())
        for group in optimizer.param_groups:
            group["lr"] = lr
        run = wrap(optimizer, 300, model=model)
        for loss in losses(model, 300):
            loss.backward()
            run.step(loss)
        ends.append(loss.item())
    assert max(ends) < 0.6 * next(iter(losses(net(), 1))).item()


def test_relative_learning_rates_of_groups_are_kept() -> None:
    model = net()
    run = wrap(
        O.AdamW([{"params": model[0].parameters(), "lr": 1e-2}, {"params": model[2].parameters()}], lr=1e-3),
        50,
    )
    for loss in losses(model, 30):
        loss.backward()
        run.step(loss)
    first, second = (float(g["step_size"]) for g in run.optimizer.param_groups)
    assert first == pytest.approx(10 * second)


def test_resumed_it_goes_on_bitwise(tmp_path: Any) -> None:
    ends = []
    for cut in (0, 1, 17):
        model = net()
        run = wrap(O.Adam(model.parameters(), weight_decay=0.01), 40)
        for i, loss in enumerate(losses(model, 40)):
            if i == cut:
                torch.save((model.state_dict(), run.state_dict()), tmp_path / "c.pt")
                other = net()
                run = wrap(O.Adam(other.parameters(), weight_decay=0.01), 40)
                weights, state = torch.load(tmp_path / "c.pt", weights_only=True)
                other.load_state_dict(weights)
                run.load_state_dict(state)
                loss, model = None, other
                break
            loss.backward()
            run.step(loss)
        for i, loss in enumerate(losses(model, 40)):
            if i >= cut:
                loss.backward()
                run.step(loss)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_what_it_is_and_where_it_is_found() -> None:
    assert metaopt_hpo.wrap is wrap
    run = wrap(O.SGD(net().parameters(), lr=0.1), 10)
    assert run.horizon == 10
    assert run.max_grad_norm is None


def test_past_its_horizon_it_goes_on_and_says_so_once() -> None:
    model = net()
    run = wrap(torch.optim.AdamW(model.parameters()), 10)
    with pytest.warns(RunWarning, match="planned for 10 steps") as said:
        take(run, model, 13)
    assert len(said) == 1
    assert run.steps_taken == 13


SCRIPT = """
import torch
from metaopt_hpo import wrap

def train(planned, taken):
    model = torch.nn.Linear(2, 1)
    run = wrap(torch.optim.AdamW(model.parameters()), planned, model)
    for _ in range(taken):
        loss = model(torch.ones(2)).square().sum()
        loss.backward()
        run.step(loss)
    return run

runs = [train(20, 20), train(20, 7), train(20, 0)]
{last}
"""


@pytest.mark.parametrize(("last", "said"), [("", 1), ("raise ValueError", 0), ("del runs", 0)])
def test_a_loop_that_ends_before_its_horizon_is_named_when_the_process_ends(last: str, said: int) -> None:
    script = SCRIPT.replace("{last}", last)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.count("planned for 20 steps ended after 7") == said
    assert done.stderr.count("planned for") == said


@pytest.mark.parametrize(("name", "says"), [("metaoptimize", 1), ("cosine", 1), ("constant", 0)])
def test_a_strategy_past_its_horizon_says_so_where_its_step_size_fell(name: str, says: int) -> None:
    model = net()
    optimizer = make(name, lr=1e-2).build(model, 10).as_optimizer()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for loss in losses(model, 13):
            optimizer.loss = loss
            loss.backward()
            optimizer.step()
    assert [w.category for w in said] == [RunWarning] * says


@pytest.mark.parametrize("kind", [O.AdamW, O.NAdam])  # one that is computed here, and one that is asked
def test_hooks_of_the_optimizer_are_called_around_each_update_and_not_in_the_trial(kind: Any) -> None:
    model = net()
    optimizer = kind(model.parameters())
    called: list[str] = []
    before, after = [], []

    def pre(given: Any, args: Any, kwargs: Any) -> None:
        assert given is optimizer
        called.append("pre")
        before.append(model[0].weight.detach().clone())

    def post(given: Any, args: Any, kwargs: Any) -> None:
        called.append("post")
        after.append(model[0].weight.detach().clone())

    optimizer.register_step_pre_hook(pre)
    run = wrap(optimizer, 20, model)
    optimizer.register_step_post_hook(post)
    take(run, model, 20)
    assert called == ["pre", "post"] * 20
    assert all(torch.equal(a, b) for a, b in zip(after, before[1:], strict=False)), "nothing moves in between"
    assert not torch.equal(before[0], after[0])


def test_weights_without_numbers_are_nothing_to_train_and_do_no_harm_beside_others() -> None:
    empty = nn.Parameter(torch.zeros(0, 4))
    with pytest.raises(StrategyError, match="nothing to train"):
        wrap(O.AdamW([empty]), 10)
    model = net()
    run = wrap(O.AdamW([*model.parameters(), empty]), 50)
    first = next(iter(losses(net(), 1))).item()
    for loss in losses(model, 50):
        (loss + empty.sum()).backward()
        run.step(loss)
    assert loss.item() < first


@pytest.mark.parametrize(
    "options",
    [
        {"foreach": True},
        {"fused": True},
        {"capturable": True},
        {"lr": torch.tensor(1e-3, dtype=torch.float64)},
    ],
)
def test_how_torch_computes_a_step_makes_no_difference(options: dict[str, Any]) -> None:
    ends = []
    for given in ({}, options):
        model = net()
        take(wrap(O.AdamW(model.parameters(), **given), 40, model), model, 40)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*ends)


@pytest.mark.parametrize("cut", [0, 1, 8, 20, 27, 45, 69, 71, 99])
def test_resumed_in_any_phase_it_goes_on_bitwise(cut: int) -> None:
    def begun() -> tuple[nn.Module, Any]:
        model = net()
        return model, wrap(O.RMSprop(model.parameters(), momentum=0.5, centered=True), 100, model)

    model, run = begun()
    batches = list(range(100))
    for step in batches[:cut]:
        one_step(model, run, step)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(run.state_dict())
    again, other = begun()
    again.load_state_dict(weights)
    other.load_state_dict(state)
    for m, r in ((model, run), (again, other)):
        for step in batches[cut:]:
            one_step(m, r, step)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    "given", [lambda loss: loss.item(), lambda loss: loss.reshape(1), lambda loss: loss.detach()]
)
def test_a_loss_of_any_form_and_a_horizon_of_numpy(given: Callable[[torch.Tensor], Any]) -> None:
    model = net()
    run = wrap(torch.optim.AdamW(model.parameters()), np.int64(40), model)
    for loss in losses(model, 40):
        loss.backward()
        run.step(given(loss))
    assert type(run.horizon) is int
    assert run.guard is not None
    assert run.guard.state_dict()["first"] > 0


def test_gradients_that_come_and_go() -> None:
    model = net()
    run = wrap(torch.optim.AdamW(model.parameters()), 100, model)
    for step, loss in enumerate(losses(model, 100)):
        loss.backward()
        if step % 2:
            model[0].weight.grad = None
        run.step(loss)
    assert loss.item() < next(iter(losses(net(), 1))).item()
    assert all(p.isfinite().all() for p in model.parameters())
