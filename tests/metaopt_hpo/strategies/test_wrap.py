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

import metaopt_hpo
from metaopt_hpo import MetaOptimize
from metaopt_hpo.strategies import StrategyError, make
from metaopt_hpo.strategies.as_optimizer import LRSetTwice
from metaopt_hpo.strategies.errors import RunWarning
from metaopt_hpo.strategies.wrap import wrap

PLAIN = {"meta_lr": 0.0, "warmup": 0.0, "cooldown": 0.0, "guard": False}
"""With these a run is the optimizer itself at its own lr."""

O = torch.optim


def Lion(params: Any, **options: Any) -> torch.optim.Optimizer:
    return pytest.importorskip("pytorch_optimizer").Lion(params, **options)


RECIPES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda p: O.AdamW(p, lr=3e-3, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1),
    "adamw amsgrad": lambda p: O.AdamW(p, lr=3e-3, amsgrad=True),
    "adamw maximize": lambda p: O.AdamW(p, lr=3e-3, maximize=True),
    "adam": lambda p: O.Adam(p, lr=3e-3),
    "adam l2": lambda p: O.Adam(p, lr=3e-3, weight_decay=0.1),
    "adam l2 maximize": lambda p: O.Adam(p, lr=3e-3, weight_decay=0.1, maximize=True),
    "sgd": lambda p: O.SGD(p, lr=3e-2, weight_decay=0.01),
    "momentum": lambda p: O.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.01),
    "dampening": lambda p: O.SGD(p, lr=1e-2, momentum=0.9, dampening=0.3),
    "nesterov": lambda p: O.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: O.RMSprop(p, lr=1e-3, weight_decay=0.01),
    "rmsprop centered momentum": lambda p: O.RMSprop(p, lr=1e-3, centered=True, momentum=0.5, alpha=0.9),
    "lion": lambda p: Lion(p, lr=1e-3, weight_decay=0.1),
    "lion l2": lambda p: Lion(p, lr=1e-3, weight_decay=0.1, weight_decouple=False),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)).double()


def losses(model: nn.Module, steps: int) -> Any:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(16, 6, generator=generator, dtype=torch.float64)
        yield (model(x) - x[:, :2].abs()).square().mean()


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups with learning rates of their own would be the same for all recipes; a decay of its own is not."""
    return [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0, "lr": 2e-3},
    ]


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


class NoLR(torch.optim.Optimizer):
    """As transformers' Adafactor comes, and as an optimizer that knows no lr."""


def adamw(**options: Any) -> torch.optim.Optimizer:
    return O.AdamW(net().parameters(), **options)


def stepped() -> torch.optim.Optimizer:
    optimizer = adamw()
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    return optimizer


def wrapped() -> torch.optim.Optimizer:
    optimizer = adamw()
    wrap(optimizer, 10)
    return optimizer


def frozen() -> torch.optim.Optimizer:
    model = net().requires_grad_(False)
    return O.AdamW(model.parameters())


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (wrapped, "found already"),
        (lambda: wrap(adamw(), 10), "found already"),
        (lambda: wrap(adamw(), 10).optimizer, "found already"),
        (lambda: MetaOptimize(net().parameters()), "found already"),
        (lambda: make("metaoptimize"), "this is a strategy"),
        (lambda: type(make("cosine")), "this is a strategy"),
        (stepped, "has taken steps"),
        (frozen, "nothing to train"),
        (lambda: O.AdamW(net().to("meta").parameters()), "meta device"),
        (lambda: adamw(differentiable=True), "differentiable=True"),
        (lambda: adamw(lr=0.0), "at least one must be positive"),
        (lambda: Lion(net().parameters(), fixed_decay=True, weight_decay=0.1), "not in proportion"),
        (lambda: None, "is no torch optimizer"),
        (lambda: torch.optim.Adafactor(net().parameters()), "Adafactor scales its lr with the weights"),
        (lambda: NoLR(net().parameters(), {}), "sets its own learning rate"),
        (lambda: NoLR(net().parameters(), {"lr": None, "relative_step": True}), "sets its own learning rate"),
    ],
)
def test_what_it_refuses_in_one_sentence(what: Callable[[], Any], says: str) -> None:
    with pytest.raises(StrategyError, match=says) as error:
        wrap(what(), 10)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lr": 1e-3}, "lr is read from the optimizer"),
        ({"betas": (0.9, 0.9)}, "betas is read from the optimizer"),
        ({"warm_up": 0.1}, "did you mean 'warmup'"),
        ({"trace": "2x2"}, "wrap.. leaves to the loop"),
        ({"horizon": 12.5}, "count optimizer steps"),
        ({"horizon": 0}, "positive whole number"),
    ],
)
def test_options_it_refuses(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wrap(adamw(), **{"horizon": 10, **options})


def take(run: Any, model: nn.Module, steps: int, factor: float = 1.0) -> None:
    for loss in losses(model, steps):
        loss.backward()
        run.step(loss.detach() * factor)


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


def test_what_is_called_by_mistake_is_named() -> None:
    model = net()
    optimizer = O.AdamW(model.parameters())
    run = wrap(optimizer, 10, model)
    with pytest.raises(StrategyError, match=r"call run\.step"):
        optimizer.step()
    optimizer.zero_grad()
    with pytest.warns(RunWarning, match="call loss.backward"):
        run.step(next(iter(losses(model, 1))))
    with pytest.raises(StrategyError, match=r"shape \(2,\)"):
        run.step(torch.ones(2))
    sparse = nn.Embedding(4, 2, sparse=True)
    other = wrap(O.RMSprop(sparse.parameters()), 10)
    sparse(torch.arange(4)).square().mean().backward()
    with pytest.raises(StrategyError, match="sparse"):
        other.step()


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step")  # torch's own counting of steps
@pytest.mark.parametrize("when", ["before", "after", "before, and stepped"])
@pytest.mark.parametrize("schedule", [lambda step: 1 / 3, lambda step: min(1.0, step / 10)])
def test_a_scheduler_of_the_wrapped_optimizer_changes_nothing_and_is_named_once(
    when: str, schedule: Callable[[int], float]
) -> None:
    ends, said = [], []
    for made in ("never", when):
        model = net()
        optimizer = O.AdamW(model.parameters())
        if made.startswith("before"):
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)  # has lowered lr, to 0 perhaps
        run = wrap(optimizer, 20, model)
        if made == "after":
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for loss in losses(model, 20):
                loss.backward()
                run.step(loss)
                if made.endswith("stepped"):
                    scheduler.step()
        said.append([w for w in caught if w.category is LRSetTwice])
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(ends[0], ends[1]), "the search starts at the lr that the optimizer was made with"
    assert said[0] == []
    constant = schedule(0) == schedule(1)
    assert len(said[1]) == (0 if when == "before" or (constant and when.endswith("stepped")) else 1)


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


@pytest.mark.parametrize("name", ["zero_grad", "param_groups", "state"])
def test_a_run_that_is_taken_for_an_optimizer_says_what_to_give_instead(name: str) -> None:
    run = wrap(adamw(), 10)
    with pytest.raises(AttributeError, match=r"give run\.as_optimizer"):
        getattr(run, name)
    assert not hasattr(run, "anything_else")


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


def one_step(model: nn.Module, run: Any, step: int) -> None:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    loss = (model(x) - x[:, :2].abs()).square().mean()
    loss.backward()
    run.step(loss)


def test_a_shell_around_an_optimizer_is_named() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = net().float()
    shell = accelerate.Accelerator(cpu=True).prepare(O.AdamW(model.parameters()))
    with pytest.raises(StrategyError, match="AcceleratedOptimizer is a shell around another optimizer"):
        wrap(shell, 10, model)
    again = accelerate.Accelerator(cpu=True).prepare(
        wrap(O.AdamW(model.parameters()), 10, model).as_optimizer()
    )
    with pytest.raises(StrategyError, match="shell"):
        wrap(again, 10, model)


def test_a_model_that_is_not_the_optimizers_is_named() -> None:
    model = net()
    optimizer = O.AdamW([*model.parameters(), *nn.Linear(2, 2).parameters()])
    with pytest.raises(StrategyError, match="2 of the optimizer's parameters are not the model's"):
        wrap(optimizer, 10, model)


def test_a_loss_that_is_nan_from_the_first_step_is_named_once() -> None:
    model = net()
    run = wrap(torch.optim.AdamW(model.parameters()), 100, model)
    with pytest.warns(RunWarning, match="look at the data") as said:
        take(run, model, 60, float("nan"))
    assert len(said) == 1
    assert all(p.isfinite().all() for p in model.parameters())


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
