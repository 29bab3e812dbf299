"""What a run says while it goes on, and how large its model is."""

import io
from typing import Any

import pytest
import torch
from torch import nn

from metaopt_hpo import model_size, wrap
from metaopt_hpo.strategies import make
from metaopt_hpo.training import Progress, Scalars, TrainingRun


class TensorBoard:
    def __init__(self) -> None:
        self.rows: list[tuple[str, float, int]] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.rows.append((name, value, step))


class Wandb:
    def __init__(self) -> None:
        self.rows: list[tuple[str, float, int]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.rows += [(k, v, step) for k, v in values.items()]


class MLflow:
    def __init__(self) -> None:
        self.rows: list[tuple[str, float, int]] = []

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.rows += [(k, v, step) for k, v in values.items()]


def trained(*listeners: Any, steps: int = 30, strategy: str = "metaoptimize") -> TrainingRun:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    x = torch.randn(64, 4)
    chosen, falling = make(strategy, lr=1e-2), iter(torch.linspace(2, 1, 100))
    with TrainingRun(
        model,
        chosen,
        size=5,
        tokens=8 * steps,
        batch=8,
        evaluate=lambda: next(falling),
        listeners=listeners,
    ) as run:
        for _ in run:
            run.step((model(x) - x.sum(1, keepdim=True)).square().mean())
    return run


@pytest.mark.parametrize("kind", [TensorBoard, Wandb, MLflow])
def test_every_kind_of_logger_gets_the_same_scalars(kind: type) -> None:
    logger, plain = kind(), []
    trained(
        Scalars(logger), Scalars(lambda values, step: plain.extend((k, v, step) for k, v in values.items()))
    )
    assert logger.rows == plain
    names = {name.removeprefix("metaopt/") for name, _, _ in plain}
    assert names == {"step_size", "grad_norm", "loss", "meta_gradient", "z", "guard_returns", "guard_event"}
    assert [step for name, _, step in plain if name == "metaopt/loss"] == [10, 20, 30]


def test_a_schedule_has_no_meta_gradient_and_a_return_is_written_at_once() -> None:
    logger = TensorBoard()
    trained(Scalars(logger, every=7), strategy="cosine")
    assert "metaopt/meta_gradient" not in {name for name, _, _ in logger.rows}
    assert {step for _, _, step in logger.rows} == {7, 14, 21, 28, 30}
    model, events = nn.Linear(2, 1), TensorBoard()
    run, write = wrap(torch.optim.SGD(model.parameters(), lr=0.1), 50, model), Scalars(events, every=1000)
    for step in range(20):
        loss = model(torch.ones(2)).square().sum() * (float("nan") if step == 12 else 1.0)
        loss.backward()
        run.step(loss)
        write(run, loss)
    assert ("metaopt/guard_returns", 1.0) in {(name, value) for name, value, _ in events.rows}
    assert [step for name, value, step in events.rows if name == "metaopt/guard_event" and value] == [15]


@pytest.mark.parametrize("blocks", ["scalar", "tensor"])
def test_z_is_the_product_of_gradient_and_trace(blocks: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    run = make("metaoptimize", blocks=blocks, max_grad_norm=None, correction=1.4).build(model, 40)
    written: list[float] = []
    write = Scalars(lambda values, step: written.append(values["metaopt/z"]), every=1)
    expected = []
    for _ in range(40):
        x = torch.randn(16, 4, dtype=torch.float64)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        state = run.optimizer.state
        expected.append(
            sum(float((p.grad * state[p]["h"]).sum()) if p in state else 0.0 for p in model.parameters())
        )
        run.step(loss.detach())
        write(run, loss.detach())

    assert written == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_logger_that_cannot_log_is_named() -> None:
    with pytest.raises(ValueError, match="int has none of add_scalar"):
        Scalars(3)
    with pytest.raises(ValueError, match="every"):
        Scalars(print, every=0)


def test_progress_says_step_loss_step_size_and_time_left() -> None:
    stream = io.StringIO()
    trained(Progress(seconds=0, stream=stream))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 30
    assert lines[9].startswith("step 10 of 30, loss ")
    assert "step size" in lines[9]
    assert lines[9].endswith("left")
    few = io.StringIO()
    trained(Progress(seconds=1e9, stream=few))
    assert len(few.getvalue().splitlines()) == 2


def test_a_frameworks_loop_has_listeners_too() -> None:
    model, logger = nn.Linear(2, 1), TensorBoard()
    optimizer = wrap(torch.optim.AdamW(model.parameters()), 20).as_optimizer()
    optimizer.listeners.append(Scalars(logger, every=1))
    for _ in range(3):
        optimizer.loss = model(torch.ones(2)).sum()
        optimizer.loss.backward()
        optimizer.step()
    assert {step for _, _, step in logger.rows} == {1, 2, 3}


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(10, 4))


def test_size_leaves_out_what_does_not_train_and_embeddings_even_tied() -> None:
    embedding, head = nn.Embedding(100, 4), nn.Linear(4, 100, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False), head)
    assert model_size(model) == 20
    assert model_size(nn.Sequential(embedding, nn.Linear(4, 4), nn.Linear(4, 100, bias=False))) == 420
    assert model_size(nn.Sequential(type("LearnedEmbedding", (Positions,), {})(), nn.Linear(2, 2))) == 6
    with pytest.raises(ValueError, match="no trainable parameter outside embeddings"):
        model_size(nn.Embedding(3, 3))
