"""Two processes, plain DDP and FSDP2: all ranks agree, and a distributed checkpoint resumes bitwise."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from metaopt_hpo import wrap

STEPS = 30
KINDS = ("ddp", "fsdp2")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))


def batch(step: int, rank: int) -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(2 * step + rank))


def begun(kind: str) -> tuple[nn.Module, Any]:
    model = net()
    if kind == "fsdp2":
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    trained = DistributedDataParallel(model) if kind == "ddp" else model
    return trained, wrap(torch.optim.AdamW(model.parameters(), lr=1e-4), STEPS, model)


def train(model: nn.Module, optimizer: Any, start: int, stop: int) -> None:
    for step in range(start, stop):
        x = batch(step, dist.get_rank())
        loss = (model(x) - x[:, :2].abs()).square().mean()
        optimizer.loss = loss
        loss.backward()
        optimizer.step()


def numbers(model: nn.Module) -> list[float]:
    out: list[float] = []
    for p in model.parameters():
        whole = p.full_tensor() if hasattr(p, "full_tensor") else p
        out += whole.detach().flatten().tolist()
    return out


def resumed_beside_whole(kind: str, folder: str) -> tuple[Any, ...]:
    model, run = begun(kind)
    optimizer = run.as_optimizer()
    train(model, optimizer, 0, 17)
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
    train(model, optimizer, 17, STEPS)
    again, other = begun(kind)
    resumed = other.as_optimizer()
    weights, state = get_state_dict(again, resumed)
    loaded = {"model": weights, "optimizer": state}
    dcp.load(loaded, checkpoint_id=folder)
    set_state_dict(again, resumed, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
    assert other.steps_taken == 17
    train(again, resumed, 17, STEPS)
    return numbers(model), numbers(again), optimizer.param_groups[0]["lr"], resumed.param_groups[0]["lr"]


def work(rank: int, port: int, folder: str, results: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results[rank] = {kind: resumed_beside_whole(kind, f"{folder}/{kind}") for kind in KINDS}
    dist.barrier()
    os._exit(0)  # on a busy machine torch's own threads abort an orderly exit now and then


@pytest.mark.slow
def test_ranks_agree_and_a_distributed_checkpoint_resumes_bitwise(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(work, (port, str(tmp_path), results), nprocs=2)
        first, second = results[0], results[1]
    assert first == second
    for kind in KINDS:
        weights, resumed, size, size_resumed = first[kind]
        assert weights == resumed
        assert size == size_resumed
