"""Runs under a loss scale, for every strategy; and runs that differentiate the gradient."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from metaopt_hpo.strategies import LRRun, StrategyError, make
from metaopt_hpo.strategies.registry import BUILT_IN
from metaopt_hpo.training import TrainingRun
from metaopt_hpo.workloads import TextLM, train

JOB = TextLM(width=16, context=16, sequences=4)
X = torch.randn(40, 16, 4, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([[1.0, -2.0], [0.5, 0.0], [0.0, 1.0], [2.0, 1.0]])


def started(name: str, **options: Any) -> tuple[nn.Module, LRRun]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    return model, make(name, **options).build(model, len(X))


def advance(
    model: nn.Module, run: LRRun, scaler: torch.amp.GradScaler | None = None, overflow: int = -1
) -> None:
    for step, x in enumerate(X):
        loss = (model(x) - x @ TARGET).square().mean()
        made = loss * (math.inf if step == overflow else 1.0)
        (made if scaler is None else scaler.scale(made)).backward()
        run.step(loss.detach(), scaler=scaler)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_loss_scale_changes_nothing(name: str) -> None:
    plain, scaled = started(name), started(name)
    advance(*plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    advance(*scaled, scaler)
    assert torch.equal(weights(plain[0]), weights(scaled[0]))


@pytest.mark.parametrize("name", sorted(BUILT_IN))
@pytest.mark.parametrize("overflow", [0, 25])
def test_a_step_that_overflows_changes_no_weight_and_lowers_the_scale(name: str, overflow: int) -> None:
    model, run = started(name)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    seen: list[torch.Tensor] = []
    run.optimizer.zero_grad = _noting(run.optimizer.zero_grad, seen, model)  # type: ignore[method-assign]
    start = weights(model).clone()
    advance(model, run, scaler, overflow)
    before = start if overflow == 0 else seen[overflow - 1]
    assert torch.equal(seen[overflow], before)
    assert not torch.equal(seen[overflow + 2], before)
    assert torch.isfinite(weights(model)).all()
    assert scaler.get_scale() == 2.0**11


def _noting(function: Any, seen: list[torch.Tensor], model: nn.Module) -> Any:
    def noting(*args: Any, **kwargs: Any) -> None:
        seen.append(weights(model).clone())
        function(*args, **kwargs)

    return noting


def test_a_start_too_high_is_limited_though_the_first_step_overflows() -> None:
    model, run = started("metaoptimize", lr=10.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    advance(model, run, scaler, overflow=0)
    calm, other = started("metaoptimize", lr=10.0)
    advance(calm, other)
    assert run._limit == pytest.approx(other._limit, rel=0.5)
    assert weights(model).abs().max() < 2 * weights(calm).abs().max()


def new_run(**options: Any) -> TrainingRun:
    model, _ = started("wsd")
    x, y = X[0], X[0] @ TARGET
    return TrainingRun(
        model,
        make("metaoptimize"),
        size=58,
        tokens=len(X) * 16,
        batch=16,
        evaluate=lambda: (model(x) - y).square().mean(),
        **options,
    )


def go(run: TrainingRun, until: int | None = None) -> TrainingRun:
    with run:
        for step in run:
            if step == until:
                break
            halves = X[step].chunk(2 if run.wants_halves else 1)
            run.step(*((run.model(x) - x @ TARGET).square().mean() for x in halves))
    return run


def test_a_training_run_under_a_loss_scale_is_the_one_without_and_resumes() -> None:
    def scaler() -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=7)

    plain, scaled = go(new_run()), go(new_run(scaler=scaler()))
    assert torch.equal(weights(plain.model), weights(scaled.model))
    assert scaled.record().grad_noise == pytest.approx(plain.record().grad_noise, rel=1e-5)
    first = go(new_run(scaler=scaler()), until=20)
    last = scaler()
    second = new_run(scaler=last)
    second.load_state_dict(first.state_dict())
    assert last.get_scale() == 2.0**14
    assert torch.equal(weights(go(second).model), weights(scaled.model))


@pytest.mark.parametrize("trace", ["l", "2x2"])
def test_without_meta_steps_every_trace_trains_alike(trace: str) -> None:
    tokens = 24 * JOB.batch
    plain = train(JOB, make("metaoptimize", meta_lr=0.0), tokens=tokens)
    traced = train(JOB, make("metaoptimize", meta_lr=0.0, trace=trace), tokens=tokens)
    torch.testing.assert_close(weights(traced.model), weights(plain.model), rtol=1e-3, atol=1e-5)
    assert float(traced.lr_run.grad_norm) == pytest.approx(float(plain.lr_run.grad_norm), rel=1e-2)


def test_traces_start_alike_and_then_find_their_own_step_size() -> None:
    first, second = (
        train(JOB, make("metaoptimize", lr=10.0, trace=trace), tokens=24 * JOB.batch)
        for trace in ("hessian_free", "2x2")
    )
    assert first.lr_run._limit == pytest.approx(second.lr_run._limit, rel=1e-4)
    assert second.state == "complete"
    assert second.loss < second.initial_loss
    assert float(first.lr_run.step_sizes()[0]) != float(second.lr_run.step_sizes()[0])


def test_a_trace_that_differentiates_the_gradient_says_what_it_needs() -> None:
    model, run = started("metaoptimize", trace="2x2")
    x = X[0]
    loss = (model(x) - x @ TARGET).square().mean()
    with pytest.raises(StrategyError, match=r"call step\(loss\) with the loss of the whole batch"):
        run.step()
    with pytest.raises(StrategyError, match="do not call backward"):
        run.step(loss.detach())
    with pytest.raises(StrategyError, match="cannot be used with a loss scale"):
        run.step(loss, scaler=torch.amp.GradScaler("cpu"))
    loss.backward()
    with pytest.raises(StrategyError, match="do not call backward"):
        run.step(loss)
    with pytest.raises(ValueError, match="trace='3x3' is not known"):
        make("metaoptimize", trace="3x3")
