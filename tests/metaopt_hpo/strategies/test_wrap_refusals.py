"""What wrap() cannot take, and what is taken for something else, is named in one sentence."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from wrapping import Lion, adamw, losses, net, take

from metaopt_hpo import MetaOptimize
from metaopt_hpo.strategies import StrategyError, make
from metaopt_hpo.strategies.as_optimizer import LRSetTwice
from metaopt_hpo.strategies.errors import RunWarning
from metaopt_hpo.strategies.wrap import wrap

O = torch.optim


class NoLR(torch.optim.Optimizer):
    """As transformers' Adafactor comes, and as an optimizer that knows no lr."""


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


@pytest.mark.parametrize("name", ["zero_grad", "param_groups", "state"])
def test_a_run_that_is_taken_for_an_optimizer_says_what_to_give_instead(name: str) -> None:
    run = wrap(adamw(), 10)
    with pytest.raises(AttributeError, match=r"give run\.as_optimizer"):
        getattr(run, name)
    assert not hasattr(run, "anything_else")


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
    with pytest.warns(
        RunWarning,
        match="its step size alone does not bring it back: look at the data, the model and the loss",
    ) as said:
        take(run, model, 60, float("nan"))
    assert len(said) == 1
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["wrap", "metaoptimize", "wsd", "adalrs", "hypergradient", "prodigy"])
def test_a_closure_in_the_place_of_the_loss_is_named(name: str) -> None:
    model = net()
    run = wrap(O.AdamW(model.parameters()), 10) if name == "wrap" else make(name).build(model, 10)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(
        StrategyError, match=r"takes the loss and no closure.*as_optimizer\(\)\.step\(closure\)"
    ):
        run.step(lambda: torch.tensor(1.0))  # type: ignore[arg-type]
    with pytest.raises(StrategyError, match="a number or a tensor of one, got str"):
        run.step("1.0")  # type: ignore[arg-type]
    with pytest.raises(StrategyError, match="takes the loss and no closure"):
        run.as_optimizer().loss = lambda: torch.tensor(1.0)  # type: ignore[assignment]
    assert run.steps_taken == 0
