"""The guard's copy: what trains and nothing else, in memory that is allocated once, restored in place."""

import copy
import io

import pytest
import torch
from torch import nn

from metaopt_hpo import MetaOptimize
from metaopt_hpo.strategies.snapshot import Snapshot


def parts(frozen: bool = True) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64).requires_grad_(not frozen), nn.BatchNorm1d(64), nn.Linear(64, 2))
    optimizer = MetaOptimize([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    return model, optimizer


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, n: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(n):
        model(torch.randn(16, 64, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def addresses(snapshot: Snapshot) -> list[int]:
    state = snapshot.state_dict()
    assert state is not None
    return [t.data_ptr() for t in state["tensors"]]


def numbers(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    state = [v for s in optimizer.state.values() for v in s.values()]
    shared = [v for g in optimizer.param_groups for k, v in g.items() if isinstance(v, torch.Tensor)]
    return [*model.state_dict().values(), *state, *shared]


def test_frozen_weights_are_left_out() -> None:
    model, optimizer = parts()
    snapshot = Snapshot(model, optimizer)
    snapshot.keep()
    kept = snapshot.state_dict()
    assert kept is not None
    assert sum(t.numel() for t in kept["tensors"]) < 1_000 < model[0].weight.numel()


def test_memory_is_allocated_once_and_tensors_stay_where_they_are() -> None:
    model, optimizer = parts(frozen=False)
    steps(model, optimizer, 1)
    snapshot = Snapshot(model, optimizer)
    snapshot.keep()
    buffer, live = addresses(snapshot), [t.data_ptr() for t in numbers(model, optimizer)]
    for _ in range(3):
        steps(model, optimizer, 1)
        snapshot.keep()
        snapshot.restore()
    assert addresses(snapshot) == buffer
    assert [t.data_ptr() for t in numbers(model, optimizer)] == live


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("through_file", [False, True])
def test_training_goes_on_from_it_exactly(before: int, through_file: bool) -> None:
    model, optimizer = parts(frozen=False)
    steps(model, optimizer, before)
    snapshot = Snapshot(model, optimizer)
    snapshot.keep()
    steps(model, optimizer, 4)
    expected = copy.deepcopy(numbers(model, optimizer))
    if through_file:
        file = io.BytesIO()
        torch.save(snapshot.state_dict(), file)
        file.seek(0)
        snapshot = Snapshot(model, optimizer)
        snapshot.load_state_dict(torch.load(file, weights_only=True))
    snapshot.restore()
    steps(model, optimizer, 4)
    for a, b in zip(numbers(model, optimizer), expected, strict=True):
        assert torch.equal(a, b)


def test_weights_that_were_unfrozen_after_it_start_afresh() -> None:
    model, optimizer = parts()
    steps(model, optimizer, 2)
    snapshot = Snapshot(model, optimizer)
    snapshot.keep()
    model[0].requires_grad_(True)
    optimizer.add_param_group({"params": list(model[0].parameters())})
    steps(model, optimizer, 2)
    snapshot.restore()
    assert model[0].weight not in optimizer.state
    steps(model, optimizer, 1)
    snapshot.keep()
    snapshot.restore()
    steps(model, optimizer, 1)


def test_nothing_kept_is_nothing_to_restore() -> None:
    with pytest.raises(RuntimeError, match="keep"):
        Snapshot(*parts()).restore()
